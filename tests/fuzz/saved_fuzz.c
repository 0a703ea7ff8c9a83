/*
 * State files of snapshots: the input is the file, whose sums are made right. What is accepted is
 * written again, and what was written is read again as the same.
 */
#include "vmm/machine/saved.h"

#include <string.h>

#include "tests/fuzz/support/input.h"
#include "tests/support/state_file.h"

static int decode(struct saved **s, const uint8_t *file, size_t size)
{
    struct error e = { .msg = "" };
    int ret;

    *s = saved_new();
    ret = saved_decode(*s, file, size, &e);
    MUST(ret == 0 || e.msg[0]);
    return ret;
}

static void drop(struct saved *s)
{
    vm_config_fini(&s->config);
    saved_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *file = malloc(size + 1), *first = NULL, *second = NULL;
    size_t first_bytes, second_bytes;
    struct saved *s;
    struct error e;

    MUST(file);
    memcpy(file, data, size);
    if (size >= SNAPSHOT_HEADER_BYTES) {
        memcpy(file, "MAYFLYS", 8);
        mend_state(file, size);
    }
    if (decode(&s, file, size) == 0) {
        MUST(saved_encode(s, &first, &first_bytes, &e) == 0);
        drop(s);
        MUST(decode(&s, first, first_bytes) == 0);
        MUST(saved_encode(s, &second, &second_bytes, &e) == 0);
        MUST(first_bytes == second_bytes && memcmp(first, second, first_bytes) == 0);
    }
    drop(s);
    free(file);
    free(first);
    free(second);
    return 0;
}
