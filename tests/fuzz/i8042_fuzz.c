/* The PS/2 controller under any accesses of any width, with Ctrl-Alt-Del now and then. */
#include "vmm/legacy/i8042.h"

#include <sys/eventfd.h>

#include "tests/fuzz/support/input.h"

static void step(struct i8042 *k, struct input *in)
{
    uint8_t how = take8(in), bytes[8];
    unsigned width = how & 0x80 ? 1u << (how >> 5 & 3) : 1;
    uint64_t offset = how & 7;
    struct error e;

    take_bytes(in, bytes, width);
    if (offset == 7)
        (void)!i8042_ctrl_alt_del(k, &e);
    else if (offset + width > k->bus.bytes)
        return; /* the bus does not let it through */
    else if (how & 0x10)
        k->bus.ops->read(&k->bus, offset, bytes, width);
    else
        k->bus.ops->write(&k->bus, offset, bytes, width);
}

/* There is no VM whose line it could be. */
static void no_edge(const struct kvm_line *line)
{
    (void)line;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int ended = -1;
    struct input in = { data, size };
    struct guest_end end = { 0 };
    struct i8042 k;

    if (ended < 0)
        ended = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    end.event_fd = ended;
    i8042_init(&k, (struct kvm_line){ 0 }, &end);
    k.pulse = no_edge;
    while (in.left > 0) {
        step(&k, &in);
        MUST(k.state.count <= I8042_BUFFER_BYTES && k.state.head < I8042_BUFFER_BYTES);
    }
    MUST(loop_drain(ended) <= 1);
    return 0;
}
