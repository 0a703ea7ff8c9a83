#include "vmm/base/instance_id.h"

#include <string.h>

int instance_id_parse(const char *name, const char *text, void *place, struct error *e)
{
    size_t n = strlen(text);

    (void)name;
    if (n == 0 || n > INSTANCE_ID_MAX_BYTES)
        return fail(e, ERR_INVALID,
                    "Invalid instance ID: Invalid len (%zu);  the length must be between 1 and %u",
                    n, INSTANCE_ID_MAX_BYTES);
    for (size_t i = 0; i < n; i++)
        if (!(text[i] & 0x80) &&
            !strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-", text[i]))
            return fail(e, ERR_INVALID, "Invalid instance ID: Invalid char (%c) at position %zu",
                        text[i], i);
    *(const char **)place = text;
    return 0;
}
