/* The configuration file: the input is the file. */
#include "api/config_file.h"

#include "tests/fuzz/support/scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    struct scratch s;
    struct error e;
    size_t length;
    char *text = take_text(&in, &length);

    scratch_enter(&s);
    confine(text, length);
    make_file("config", text, length);
    e.msg[0] = '\0';
    MUST(config_file_apply(s.vm, "config", NULL, &e) < 0 && e.msg[0]); /* it can't start */
    scratch_leave(&s);
    free(text);
    return 0;
}
