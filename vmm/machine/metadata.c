#include "vmm/machine/metadata.h"

#include <arpa/inet.h>
#include <string.h>

#include "vmm/machine/interfaces.h"

bool metadata_is_on(const struct mmds_config *config, const char *iface_id)
{
    for (size_t i = 0; i < config->interfaces.count; i++)
        if (strcmp(config->interfaces.items[i], iface_id) == 0)
            return true;
    return false;
}

/* 169.254.1.0 to 169.254.254.255: the rest of 169.254.0.0/16 is reserved (RFC 3927, section 2.1).
 */
static bool is_link_local(const char *address)
{
    struct in_addr in;
    uint32_t a;

    if (inet_pton(AF_INET, address, &in) != 1)
        return false;
    a = ntohl(in.s_addr);
    return a >> 16 == 0xa9fe && a >= 0xa9fe0100 && a < 0xa9feff00;
}

int metadata_check(const struct mmds_config *c, const struct net_configs *interfaces,
                   struct error *e)
{
    if (!is_link_local(c->ipv4_address))
        return fail(e, ERR_INVALID, "The MMDS IPv4 address is not link local.");
    if (c->interfaces.count == 0)
        return fail(e, ERR_INVALID,
                    "The list of network interface IDs that allow forwarding MMDS requests is "
                    "empty.");
    for (size_t i = 0; i < c->interfaces.count; i++)
        if (interfaces_find(interfaces, c->interfaces.items[i]) == interfaces->count)
            return fail(e, ERR_INVALID,
                        "The list of network interface IDs provided contains at least one ID that "
                        "does not correspond to any existing network interface.");
    return 0;
}

/* The ids of those interfaces that have it, each once. */
static struct text_list order_ids(const struct mmds_config *c, const struct net_configs *interfaces)
{
    struct text_list ids = { calloc(interfaces->count, sizeof(char *)), 0 };

    BUG_ON(!ids.items);
    for (size_t i = 0; i < interfaces->count; i++) {
        const char *id = interfaces->items[i].iface_id;

        if (!metadata_is_on(c, id))
            continue;
        ids.items[ids.count] = strdup(id);
        BUG_ON(!ids.items[ids.count++]);
    }
    return ids;
}

int metadata_configure(struct mmds_config *config, struct mmds_config *c,
                       const struct net_configs *interfaces, struct error *e)
{
    if (!c->ipv4_address) {
        c->ipv4_address = strdup(METADATA_ADDRESS_DEFAULT);
        BUG_ON(!c->ipv4_address);
    }
    if (metadata_check(c, interfaces, e) < 0)
        return -1;
    mmds_config_fini(config);
    *config = (struct mmds_config){
        .version = c->version,
        .interfaces = order_ids(c, interfaces),
        .ipv4_address = c->ipv4_address,
        .imds_compat = c->imds_compat,
    };
    c->ipv4_address = NULL;
    return 0;
}
