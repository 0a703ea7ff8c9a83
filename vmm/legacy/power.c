#include "vmm/legacy/power.h"

#include "vmm/base/log.h"
#include "vmm/kvm/layout.h"

#define SLEEP_REGISTERS 2u /* control, then status */
#define SLEEP_TYPE_MASK 0x1cu
#define SLEEP_ENABLE    0x20u

static void power_write(struct bus_device *d, uint64_t offset, const uint8_t *data, unsigned bytes)
{
    const struct power *p = owner_of(d, struct power, bus);

    if (offset != 0 || bytes != 1 ||
        (*data & (SLEEP_TYPE_MASK | SLEEP_ENABLE)) != (SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE))
        return;
    if (!p->end->ended) /* a guest may write a page of them at once */
        log_info("The guest has powered off.");
    guest_end_signal(p->end, 0);
}

static const struct bus_ops power_ops = { .read = bus_read_zeroes, .write = power_write };

void power_init(struct power *p, struct kvm_line button, struct guest_end *end)
{
    *p = (struct power){
        .bus = { .ops = &power_ops, .base = LAYOUT_SLEEP_CONTROL, .bytes = SLEEP_REGISTERS },
        .button = button,
        .pulse = kvm_pulse,
        .end = end,
    };
}

void power_press(const struct power *p)
{
    p->pulse(&p->button);
}
