#include "vmm/base/uuid.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "vmm/base/random.h"

int uuid_make(struct uuid *uuid, struct error *e)
{
    const int ret = random_fill(uuid->bytes, sizeof(uuid->bytes));

    if (ret < 0)
        return fail_os(e, -ret, "Cannot get random bytes for a UUID");
    uuid->bytes[6] = (uint8_t)((uuid->bytes[6] & 0x0f) | 0x40);
    uuid->bytes[8] = (uint8_t)((uuid->bytes[8] & 0x3f) | 0x80);
    return 0;
}

bool uuid_equal(const struct uuid *a, const struct uuid *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

void uuid_text(const struct uuid *uuid, char text[UUID_TEXT])
{
    char *to = text;

    for (unsigned i = 0; i < sizeof(uuid->bytes); i++)
        to += sprintf(to, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", uuid->bytes[i]);
}

bool uuid_parse(struct uuid *uuid, const char *text)
{
    static const char digits[] = "0123456789abcdef";

    for (unsigned i = 0; i < 2 * sizeof(uuid->bytes); i++) {
        const char *digit;

        if ((i == 8 || i == 12 || i == 16 || i == 20) && *text++ != '-')
            return false;
        digit = *text ? strchr(digits, tolower((unsigned char)*text++)) : NULL;
        if (!digit)
            return false;
        uuid->bytes[i / 2] = (uint8_t)(uuid->bytes[i / 2] << 4 | (digit - digits));
    }
    return true;
}
