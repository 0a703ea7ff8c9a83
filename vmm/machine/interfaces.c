#include "vmm/machine/interfaces.h"

#include <linux/if_ether.h>
#include <string.h>

unsigned interfaces_find(const struct net_configs *list, const char *id)
{
    unsigned i = 0;

    while (i < list->count && strcmp(list->items[i].iface_id, id) != 0)
        i++;
    return i;
}

int interfaces_check(const struct net_configs *list, const struct net_config *c, struct error *e)
{
    for (unsigned i = 0; i < list->count && c->guest_mac; i++) {
        const struct net_config *other = &list->items[i];

        if (other->guest_mac && strcmp(other->guest_mac, c->guest_mac) == 0 &&
            strcmp(other->iface_id, c->iface_id) != 0)
            return fail(e, ERR_INVALID, "The MAC address is already in use: %s", c->guest_mac);
    }
    if (c->has_mtu && c->mtu < ETH_MIN_MTU)
        return fail(e, ERR_INVALID,
                    "Could not create the network device: MTU %u is out of range [%u, %u]", c->mtu,
                    ETH_MIN_MTU, UINT16_MAX);
    return 0;
}

void interfaces_parse_mac(uint8_t mac[NET_MAC_BYTES], const char *text)
{
    for (unsigned i = 0; i < NET_MAC_BYTES; i++)
        mac[i] = (uint8_t)strtoul(&text[3 * i], NULL, 16);
}

/* A tap that an interface of the same id holds already is taken over: most can't be opened twice.
 */
static int open_interface(struct interface *out, const struct net_config *c, struct interface *old,
                          struct error *e)
{
    *out = (struct interface){ 0 };
    if (c->guest_mac)
        interfaces_parse_mac(out->mac, c->guest_mac);
    if (old && strcmp(old->tap.name, c->host_dev_name) == 0) {
        out->tap = old->tap;
        old->tap.fd = -1;
        return 0;
    }
    return net_tap_open(&out->tap, c->host_dev_name, e);
}

int interfaces_put(struct net_configs *list, struct interface **open, struct net_config *c,
                   struct error *e)
{
    unsigned at = interfaces_find(list, c->iface_id);
    struct interface *old = at < list->count ? &(*open)[at] : NULL;
    struct interface new;

    if (interfaces_check(list, c, e) < 0)
        return -1;
    if (open_interface(&new, c, old, e) < 0)
        return fail_within(e, "Could not create the network device");
    if (old) {
        net_tap_close(&old->tap);
        net_config_fini(&list->items[at]);
        list->items[at] = list->items[list->count - 1];
        *old = (*open)[list->count - 1];
    } else {
        list->items = reallocarray(list->items, ++list->count, sizeof(*list->items));
        *open = reallocarray(*open, list->count, sizeof(**open));
        BUG_ON(!list->items || !*open);
    }
    free(c->host_dev_name); /* the kernel may have chosen one */
    c->host_dev_name = strdup(new.tap.name);
    BUG_ON(!c->host_dev_name);
    list->items[list->count - 1] = *c;
    (*open)[list->count - 1] = new;
    *c = (struct net_config){ 0 };
    return 0;
}

int interfaces_open(struct interface **open, const struct net_configs *list, struct error *e)
{
    struct interface *interfaces = calloc(list->count + 1, sizeof(*interfaces));

    BUG_ON(!interfaces);
    for (size_t i = 0; i < list->count; i++)
        if (open_interface(&interfaces[i], &list->items[i], NULL, e) < 0) {
            interfaces_close(interfaces, i);
            return -1;
        }
    *open = interfaces;
    return 0;
}

void interfaces_close(struct interface *open, size_t count)
{
    for (size_t i = 0; i < count; i++)
        net_tap_close(&open[i].tap);
    free(open);
}
