/*
 * The network interfaces of a configuration, and the taps that they hold open. The two lists go
 * together: what is open for config->interfaces.items[i] is (*open)[i].
 */
#pragma once

#include "virtio/net.h"
#include "vmm/base/config.h"

struct interface {
    struct net_tap tap;
    uint8_t mac[NET_MAC_BYTES]; /* of the configuration's guest_mac */
};

/* The interface of that id, or `count`. */
unsigned interfaces_find(const struct net_configs *list, const char *id);

/* Whether an interface may be beside those of the list that have another id. */
must_check int interfaces_check(const struct net_configs *list, const struct net_config *c,
                                struct error *e);

/* The bytes of a configuration's guest_mac. */
void interfaces_parse_mac(uint8_t mac[NET_MAC_BYTES], const char *text);

/* Adds an interface, whose tap is opened now, and takes over what *c holds. One that has that id
 * already goes, and as in Firecracker the last one takes its place. On failure (-1, with a text for
 * the client) nothing has changed. */
must_check int interfaces_put(struct net_configs *list, struct interface **open,
                              struct net_config *c, struct error *e);

/* Opens the taps of all interfaces of a list: the caller's, to be given to interfaces_close(). On
 * failure (-1) nothing is open. */
must_check int interfaces_open(struct interface **open, const struct net_configs *list,
                               struct error *e);

/* Closes the first `count`, and frees the list. */
void interfaces_close(struct interface *open, size_t count);
