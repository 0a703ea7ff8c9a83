#include "vmm/legacy/power.h"

#include <criterion/criterion.h>
#include <string.h>
#include <sys/eventfd.h>

#include "tests/unit/support/files.h"
#include "vmm/base/log.h"
#include "vmm/kvm/layout.h"

/* SLP_TYP 5 and SLP_EN. */
#define SOFT_OFF 0x34

static char path[] = NEW_FILE;
static struct bus ports;
static struct power power;
static struct guest_end end;
static struct error e;
static int button;

static void count_edge(const struct kvm_line *line)
{
    loop_signal(line->vm_fd);
}

static void set_up(void)
{
    close(new_file(path));
    cr_assert_eq(log_open(path, &e), 0, "%s", e.msg);
    button = eventfd(0, EFD_NONBLOCK);
    end = (struct guest_end){ .event_fd = eventfd(0, EFD_NONBLOCK) };
    power_init(&power, (struct kvm_line){ .vm_fd = button, .gsi = GSI_POWER_BUTTON }, &end);
    power.pulse = count_edge;
    bus_add(&ports, &power.bus);
}

static void tear_down(void)
{
    unlink(path);
}

TestSuite(power, .init = set_up, .fini = tear_down);

static void out(uint16_t port, uint32_t value, unsigned bytes)
{
    bus_write(&ports, port, (const uint8_t *)&value, bytes);
}

Test(power, tells_once_that_the_guest_is_off_with_code_zero)
{
    char text[4096] = "";
    const char *line;

    out(LAYOUT_SLEEP_CONTROL, SOFT_OFF, 1);
    out(LAYOUT_SLEEP_CONTROL, SOFT_OFF, 1);
    cr_expect(end.ended);
    cr_expect_eq(end.exit_code, 0);
    cr_expect_eq(loop_drain(end.event_fd), 1);
    read_text(path, text, sizeof(text));
    line = strstr(text, "The guest has powered off.");
    cr_assert(line, "%s", text);
    cr_expect_not(strstr(line + 1, "The guest"), "%s", text);
}

Test(power, stays_on_for_all_else_that_is_written)
{
    for (unsigned value = 0; value < 0x100; value++) {
        if ((value & 0x3c) != SOFT_OFF)
            out(LAYOUT_SLEEP_CONTROL, value, 1);
        out(LAYOUT_SLEEP_STATUS, value, 1);
    }
    out(LAYOUT_SLEEP_CONTROL, SOFT_OFF | SOFT_OFF << 8, 2);
    out(LAYOUT_SLEEP_CONTROL - 1, SOFT_OFF | SOFT_OFF << 8, 2);
    out(LAYOUT_SLEEP_CONTROL, SOFT_OFF, 4);
    cr_expect_not(end.ended);
}

Test(power, ignores_the_bits_that_the_register_does_not_have)
{
    out(LAYOUT_SLEEP_CONTROL, SOFT_OFF | 0xc3, 1);
    cr_expect(end.ended);
}

Test(power, reads_as_zero)
{
    uint8_t seen[2] = { 0xff, 0xff };

    bus_read(&ports, LAYOUT_SLEEP_CONTROL, seen, sizeof(seen));
    cr_expect_eq(seen[0] | seen[1], 0);
    seen[0] = 0xff;
    bus_read(&ports, LAYOUT_SLEEP_STATUS, seen, 1);
    cr_expect_eq(seen[0], 0);
}

Test(power, makes_an_edge_for_each_press)
{
    power_press(&power);
    cr_expect_eq(loop_drain(button), 1);
    power_press(&power);
    power_press(&power);
    cr_expect_eq(loop_drain(button), 2);
}
