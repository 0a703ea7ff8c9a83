/*
 * The network interfaces that a client has configured, with the taps they hold.
 */
#pragma once

#include "virtio/net.h"
#include "vmm/base/config.h"

struct interfaces {
    struct interface {
        struct net_config config;
        uint8_t mac[NET_MAC_BYTES]; /* of config.guest_mac */
        struct net_tap tap;
    } * items; /* in attach order */
    unsigned count;
};

/* Closes all. Works on a zeroed object. */
void interfaces_fini(struct interfaces *list);

/* The interface of that id, or `count`. */
unsigned interfaces_find(const struct interfaces *list, const char *id);

/* Adds an interface, whose tap is opened now, and takes over what *c holds. One that has that id
 * already goes, and as in Firecracker the last one takes its place. On failure (-1, with a text for
 * the client) nothing has changed. */
must_check int interfaces_put(struct interfaces *list, struct net_config *c, struct error *e);
