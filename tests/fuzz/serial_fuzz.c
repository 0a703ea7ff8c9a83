/* The serial port under any accesses of any width, with input, a limit of output and pauses. */
#include "vmm/legacy/serial.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>

#include "tests/fuzz/support/input.h"

static struct serial s;
static int input_fd = -1; /* the other end of stdin */

static void access_port(struct input *in, bool is_write)
{
    uint8_t data[8], how = take8(in);
    unsigned bytes = 1u << (how >> 3 & 3);
    uint64_t offset = how & 7;

    take_bytes(in, data, sizeof(data));
    if (offset + bytes > s.bus.bytes)
        return; /* the bus does not let it through */
    if (is_write)
        s.bus.ops->write(&s.bus, offset, data, bytes);
    else
        s.bus.ops->read(&s.bus, offset, data, bytes);
}

static void type(struct input *in)
{
    uint8_t text[64], n = take8(in) % sizeof(text);

    take_bytes(in, text, n);
    MUST(write(input_fd, text, n) == n || errno == EAGAIN);
}

static void run(struct loop *loop, struct input *in)
{
    while (in->left > 0) {
        switch (take8(in) % 6) {
        case 0: access_port(in, false); break;
        case 1:
        case 2: access_port(in, true); break;
        case 3: type(in); break;
        case 4: serial_pause(&s); break;
        default: serial_resume(&s);
        }
        MUST(s.state.fifo_count <= SERIAL_FIFO_BYTES && s.state.fifo_head < SERIAL_FIFO_BYTES);
        loop_turn(loop, 0);
    }
}

static void attach_input(struct loop *loop)
{
    struct error e;
    int ends[2];

    MUST(pipe2(ends, O_NONBLOCK | O_CLOEXEC) == 0);
    MUST(dup2(ends[0], STDIN_FILENO) == STDIN_FILENO);
    close(ends[0]);
    input_fd = ends[1];
    MUST(serial_attach_input(&s, loop, &e) == 0);
}

/* There is no VM whose line it could be. */
static void no_edge(const struct kvm_line *line)
{
    (void)line;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int out = -1;
    struct input in = { data, size };
    struct token_bucket limit;
    struct error e;
    struct loop loop;

    if (out < 0)
        out = open("/dev/null", O_WRONLY | O_CLOEXEC);
    MUST(loop_init(&loop, &e) == 0);
    serial_init(&s, (struct kvm_line){ 0 }, out);
    s.pulse = no_edge;
    if (take8(&in) & 1) {
        limit = (struct token_bucket){ take8(&in), take8(&in), take8(&in) };
        serial_limit(&s, &limit);
    }
    attach_input(&loop);
    run(&loop, &in);
    close(s.fifo_space.fd);
    close(input_fd);
    loop_fini(&loop);
    return 0;
}
