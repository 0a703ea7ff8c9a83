/* The configuration of the metadata service, against the interfaces that there are. */
#pragma once

#include "vmm/base/config.h"
#include "vmm/base/error.h"

#define METADATA_ADDRESS_DEFAULT "169.254.169.254"

/* -1 with a text for the client: no link-local address, no interface, or one that is not there. */
must_check int metadata_check(const struct mmds_config *c, const struct net_configs *interfaces,
                              struct error *e);

/* Takes over what *c holds as the new *config, with a default for an address that is missing and
 * the interfaces in the order of their list. -1 as metadata_check(), with nothing changed. */
must_check int metadata_configure(struct mmds_config *config, struct mmds_config *c,
                                  const struct net_configs *interfaces, struct error *e);

/* Whether the interface of that id has the metadata service. */
bool metadata_is_on(const struct mmds_config *config, const char *iface_id);
