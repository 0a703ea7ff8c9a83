#include "vmm/base/instance_id.h"

#include <stdio.h>
#include <string.h>

bool instance_id_check(const char *id, char *why)
{
    size_t n = strlen(id);

    if (n == 0 || n > INSTANCE_ID_MAX_BYTES) {
        snprintf(why, INSTANCE_ID_ERROR_BYTES,
                 "Invalid instance ID: Invalid len (%zu);  the length must be between 1 and %u", n,
                 INSTANCE_ID_MAX_BYTES);
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (id[i] & 0x80 ||
            strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-", id[i]))
            continue;
        snprintf(why, INSTANCE_ID_ERROR_BYTES,
                 "Invalid instance ID: Invalid char (%c) at position %zu", id[i], i);
        return false;
    }
    return true;
}
