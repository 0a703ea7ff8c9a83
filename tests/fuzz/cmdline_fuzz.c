/*
 * The kernel command line: it never outgrows its place, what is added is printable and goes where
 * it should, and what is refused changes nothing.
 */
#include "vmm/boot/cmdline.h"

#include "tests/fuzz/support/input.h"

static void check_added(const struct cmdline *before, const struct cmdline *after, const char *arg)
{
    size_t length = strlen(arg), blank = before->boot_bytes > 0, at = before->boot_bytes + blank;

    MUST(after->boot_bytes == at + length);
    MUST(memcmp(before->text, after->text, before->boot_bytes) == 0);
    MUST(memcmp(after->text + at, arg, length) == 0);
    MUST(strcmp(after->text + at + length, before->text + before->boot_bytes) == 0);
    for (size_t i = 0; i < length; i++)
        MUST(arg[i] >= ' ' && arg[i] <= '~');
}

/* The input: boot arguments, then arguments to add, each ended by a NUL. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    struct cmdline c, before;
    size_t length;
    char *text = take_text(&in, &length);
    struct error e;

    if (cmdline_init(&c, text, &e) == 0) {
        for (size_t at = strlen(text) + 1; at < length; at += strlen(text + at) + 1) {
            before = c;
            if (cmdline_add(&c, &e, "%s", text + at) == 0)
                check_added(&before, &c, text + at);
            else
                MUST(memcmp(&before, &c, sizeof(c)) == 0);
            MUST(strnlen(c.text, sizeof(c.text)) < sizeof(c.text));
        }
    }
    free(text);
    return 0;
}
