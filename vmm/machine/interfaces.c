#include "vmm/machine/interfaces.h"

#include <linux/if_ether.h>
#include <string.h>

unsigned interfaces_find(const struct interfaces *list, const char *id)
{
    unsigned i = 0;

    while (i < list->count && strcmp(list->items[i].config.iface_id, id) != 0)
        i++;
    return i;
}

static int check_interface(const struct interfaces *list, const struct net_config *c,
                           struct error *e)
{
    for (unsigned i = 0; i < list->count && c->guest_mac; i++) {
        const struct net_config *other = &list->items[i].config;

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

/* A tap that an interface of the same id holds already is taken over: most can't be opened twice.
 */
static int open_interface(struct net_tap *t, const struct net_config *c, struct interface *old,
                          struct error *e)
{
    if (old && strcmp(old->tap.name, c->host_dev_name) == 0) {
        *t = old->tap;
        old->tap.fd = -1;
        return 0;
    }
    if (net_tap_open(t, c->host_dev_name, e) < 0)
        return fail_within(e, "Could not create the network device");
    return 0;
}

static void close_interface(struct interface *i)
{
    net_tap_close(&i->tap);
    net_config_fini(&i->config);
}

int interfaces_put(struct interfaces *list, struct net_config *c, struct error *e)
{
    unsigned at = interfaces_find(list, c->iface_id);
    struct interface *old = at < list->count ? &list->items[at] : NULL;
    struct interface new = { 0 };

    if (check_interface(list, c, e) < 0 || open_interface(&new.tap, c, old, e) < 0)
        return -1;
    for (unsigned i = 0; c->guest_mac && i < NET_MAC_BYTES; i++)
        new.mac[i] = (uint8_t)strtoul(&c->guest_mac[3 * i], NULL, 16);
    new.config = *c;
    *c = (struct net_config){ 0 };
    free(new.config.host_dev_name); /* the kernel may have chosen one */
    new.config.host_dev_name = strdup(new.tap.name);
    BUG_ON(!new.config.host_dev_name);
    if (old) {
        close_interface(old);
        *old = list->items[list->count - 1];
    } else {
        list->items = reallocarray(list->items, ++list->count, sizeof(*list->items));
        BUG_ON(!list->items);
    }
    list->items[list->count - 1] = new;
    return 0;
}

void interfaces_fini(struct interfaces *list)
{
    for (unsigned i = 0; i < list->count; i++)
        close_interface(&list->items[i]);
    free(list->items);
    *list = (struct interfaces){ 0 };
}
