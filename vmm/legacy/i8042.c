#include "vmm/legacy/i8042.h"

#include <stddef.h>
#include <stdbool.h>

#include "vmm/base/loop.h"
#include "vmm/base/metrics.h"

#define OFFSET_DATA    0u
#define OFFSET_COMMAND 4u

#define STATUS_OUTPUT_FULL 0x01
#define STATUS_SYSTEM      0x04
#define STATUS_COMMAND     0x08
#define STATUS_UNLOCKED    0x10

#define CTL_KEYBOARD_IRQ 0x01
#define CTL_SYSTEM       0x04
#define CTL_NO_AUX       0x20 /* the auxiliary clock is off */

/* Controller commands. */
#define CMD_READ_CTL      0x20
#define CMD_WRITE_CTL     0x60
#define CMD_AUX_TEST      0xa9
#define CMD_SELF_TEST     0xaa
#define CMD_KEYBOARD_TEST 0xab
#define CMD_READ_OUTPUT   0xd0
#define CMD_WRITE_OUTPUT  0xd1
#define CMD_KEYBOARD_LOOP 0xd2
#define CMD_AUX_LOOP      0xd3
#define CMD_AUX_WRITE     0xd4
#define CMD_RESET_CPU     0xfe

#define SELF_TEST_PASSED 0x55
#define AUX_NO_CLOCK     0x01 /* interface test: the clock line is stuck, so nothing is there */

/* Keyboard commands and answers. */
#define KEY_SET_LEDS 0xed
#define KEY_ECHO     0xee
#define KEY_SCAN_SET 0xf0
#define KEY_IDENTIFY 0xf2
#define KEY_SET_RATE 0xf3
#define KEY_RESET    0xff
#define KEY_ACK      0xfa
#define KEY_TEST_OK  0xaa

/* Scan code set 2. */
static const uint8_t ctrl_alt_del[] = { 0x14, 0x11, 0xe0, 0x71 };

static bool push_bytes(struct i8042 *k, const uint8_t *bytes, unsigned n)
{
    struct i8042_state *st = &k->state;

    if (n > I8042_BUFFER_BYTES - st->count)
        return false;
    for (unsigned i = 0; i < n; i++)
        st->buffer[(st->head + st->count++) % I8042_BUFFER_BYTES] = bytes[i];
    if (st->command_byte & CTL_KEYBOARD_IRQ)
        k->pulse(&k->line);
    return true;
}

static void push_answer(struct i8042 *k, uint8_t byte)
{
    if (!push_bytes(k, &byte, 1)) /* a guest that never reads loses the rest */
        metric_inc(&metrics.i8042.error_count);
}

static uint8_t read_data(struct i8042 *k)
{
    struct i8042_state *st = &k->state;
    uint8_t byte;

    if (!st->count)
        return 0;
    byte = st->buffer[st->head];
    st->head = (st->head + 1) % I8042_BUFFER_BYTES;
    st->count--;
    /* One interrupt a byte: the next byte moves into the output buffer now. */
    if (st->count && st->command_byte & CTL_KEYBOARD_IRQ)
        k->pulse(&k->line);
    return byte;
}

static void to_keyboard(struct i8042 *k, uint8_t byte)
{
    static const uint8_t identity[] = { KEY_ACK, 0xab, 0x83 };
    static const uint8_t reset[] = { KEY_ACK, KEY_TEST_OK };
    bool is_parameter = k->state.keyboard_command;

    k->state.keyboard_command = 0;
    if (is_parameter) {
        push_answer(k, KEY_ACK);
        return;
    }
    switch (byte) {
    case KEY_ECHO: push_answer(k, KEY_ECHO); break;
    case KEY_IDENTIFY: push_bytes(k, identity, sizeof(identity)); break;
    case KEY_RESET: push_bytes(k, reset, sizeof(reset)); break;
    case KEY_SET_LEDS:
    case KEY_SCAN_SET:
    case KEY_SET_RATE: k->state.keyboard_command = byte; __attribute__((fallthrough));
    default: push_answer(k, KEY_ACK);
    }
}

static void write_data(struct i8042 *k, uint8_t byte)
{
    uint8_t command = k->state.pending_command;

    k->state.pending_command = 0;
    switch (command) {
    case CMD_WRITE_CTL: k->state.command_byte = byte; break;
    case CMD_WRITE_OUTPUT: k->state.output_port = byte; break;
    case CMD_KEYBOARD_LOOP: push_answer(k, byte); break;
    case CMD_AUX_LOOP: push_answer(k, byte); break; /* without the aux flag: no such port */
    case CMD_AUX_WRITE: break;
    default: to_keyboard(k, byte);
    }
}

static void write_command(struct i8042 *k, uint8_t command)
{
    k->state.pending_command = 0;
    switch (command) {
    case CMD_READ_CTL: push_answer(k, k->state.command_byte); break;
    case CMD_SELF_TEST: push_answer(k, SELF_TEST_PASSED); break;
    case CMD_KEYBOARD_TEST: push_answer(k, 0); break;
    case CMD_AUX_TEST: push_answer(k, AUX_NO_CLOCK); break;
    case CMD_READ_OUTPUT: push_answer(k, k->state.output_port); break;
    case CMD_WRITE_CTL:
    case CMD_WRITE_OUTPUT:
    case CMD_KEYBOARD_LOOP:
    case CMD_AUX_LOOP:
    case CMD_AUX_WRITE: k->state.pending_command = command; break;
    case CMD_RESET_CPU:
        metric_inc(&metrics.i8042.reset_count);
        guest_end_signal(k->end, 0);
        break;
    default: break;
    }
}

static void i8042_read(struct bus_device *d, uint64_t offset, uint8_t *data, unsigned bytes)
{
    struct i8042 *k = owner_of(d, struct i8042, bus);

    if (bytes != 1) {
        metric_inc(&metrics.i8042.missed_read_count);
        return;
    }
    metric_inc(&metrics.i8042.read_count);
    pthread_mutex_lock(&k->lock);
    if (offset == OFFSET_DATA)
        *data = read_data(k);
    else if (offset == OFFSET_COMMAND)
        *data = STATUS_SYSTEM | STATUS_COMMAND | STATUS_UNLOCKED |
                (k->state.count ? STATUS_OUTPUT_FULL : 0);
    else
        *data = 0; /* 0x61, the speaker's port: Linux calibrates nothing against it here */
    pthread_mutex_unlock(&k->lock);
}

static void i8042_write(struct bus_device *d, uint64_t offset, const uint8_t *data, unsigned bytes)
{
    struct i8042 *k = owner_of(d, struct i8042, bus);

    if (bytes != 1) {
        metric_inc(&metrics.i8042.missed_write_count);
        return;
    }
    metric_inc(&metrics.i8042.write_count);
    pthread_mutex_lock(&k->lock);
    if (offset == OFFSET_DATA)
        write_data(k, *data);
    else if (offset == OFFSET_COMMAND)
        write_command(k, *data);
    pthread_mutex_unlock(&k->lock);
}

static const struct bus_ops i8042_ops = { .read = i8042_read, .write = i8042_write };

void i8042_init(struct i8042 *k, struct kvm_line line, struct guest_end *end)
{
    *k = (struct i8042){
        .bus = { .ops = &i8042_ops, .base = I8042_PORT, .bytes = 5 },
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .state = { .command_byte = CTL_KEYBOARD_IRQ | CTL_SYSTEM | CTL_NO_AUX,
                   .output_port = 0x03 /* no reset, A20 on */ },
        .line = line,
        .pulse = kvm_pulse,
        .end = end,
    };
}

void i8042_restore(struct i8042 *k, const struct i8042_state *state)
{
    k->state = *state;
    if (state->count && state->command_byte & CTL_KEYBOARD_IRQ)
        k->pulse(&k->line);
}

int i8042_ctrl_alt_del(struct i8042 *k, struct error *e)
{
    bool masked, pushed = false;

    pthread_mutex_lock(&k->lock);
    masked = !(k->state.command_byte & CTL_KEYBOARD_IRQ);
    if (!masked)
        pushed = push_bytes(k, ctrl_alt_del, sizeof(ctrl_alt_del));
    pthread_mutex_unlock(&k->lock);
    if (masked)
        return fail(e, ERR_HOST, "I8042 error: Keyboard interrupt disabled by guest driver");
    if (!pushed)
        return fail(e, ERR_HOST, "I8042 error: i8042 internal buffer full.");
    return 0;
}
