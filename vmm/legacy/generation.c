#include "vmm/legacy/generation.h"

#include <stddef.h>

#include "vmm/base/random.h"

#define VMGENID_BYTES 16

#define VMCLOCK_MAGIC             0x4b4c4356u /* "VCLK" */
#define VMCLOCK_PAGE_BYTES        0x1000u
#define VMCLOCK_VERSION           1
#define VMCLOCK_COUNTER_INVALID   0xff
#define VMCLOCK_FLAG_GENERATION   (UINT64_C(1) << 8)
#define VMCLOCK_FLAG_NOTIFICATION (UINT64_C(1) << 9)

/* Without a counter the time fields have no meaning; the status 0 says the time is unknown. */
struct vmclock {
    uint32_t magic;
    uint32_t bytes;
    uint16_t version;
    uint8_t counter_id;
    uint8_t time_type;
    uint32_t seq_count; /* odd while the fields below change */
    uint64_t disruption_marker;
    uint64_t flags;
    uint8_t pad[2];
    uint8_t clock_status;
    uint8_t leap_second_smearing_hint;
    uint16_t tai_offset_s;
    uint8_t leap_indicator;
    uint8_t counter_period_shift;
    uint64_t counter_value;
    uint64_t counter_period[3];
    uint64_t time[4];
    uint64_t vm_generation_counter;
};
_Static_assert(offsetof(struct vmclock, flags) == 24, "vmclock-abi.h");
_Static_assert(offsetof(struct vmclock, clock_status) == 34, "vmclock-abi.h");
_Static_assert(offsetof(struct vmclock, vm_generation_counter) == 104, "vmclock-abi.h");
_Static_assert(sizeof(struct vmclock) == 112, "vmclock-abi.h");

static int write_both(struct guest_mem *m, const struct vmclock *clock, struct error *e)
{
    uint8_t id[VMGENID_BYTES];
    const int ret = random_fill(id, sizeof(id));

    if (ret < 0)
        return fail_os(e, -ret, "Cannot get random bytes for the VM Generation ID");
    if (gmem_put(m, gpa(LAYOUT_VMGENID), &id) < 0 || gmem_put(m, gpa(LAYOUT_VMCLOCK), clock) < 0)
        return fail(e, ERR_INVALID, "guest memory is too small for VMGenID and VMClock");
    return 0;
}

int generation_write(struct guest_mem *m, struct error *e)
{
    const struct vmclock clock = {
        .magic = VMCLOCK_MAGIC,
        .bytes = VMCLOCK_PAGE_BYTES,
        .version = VMCLOCK_VERSION,
        .counter_id = VMCLOCK_COUNTER_INVALID,
        .flags = VMCLOCK_FLAG_GENERATION | VMCLOCK_FLAG_NOTIFICATION,
    };

    return write_both(m, &clock, e);
}

/* A guest that has written there has what it wrote, but for what counts. It stands still: that the
 * fields change, which the lowest bit of seq_count says, is not to be seen. */
int generation_renew(struct guest_mem *m, struct error *e)
{
    struct vmclock clock = { .magic = 0 };

    if (gmem_get(m, gpa(LAYOUT_VMCLOCK), &clock) < 0)
        return fail(e, ERR_INVALID, "guest memory is too small for VMGenID and VMClock");
    clock.seq_count = (clock.seq_count | 1) + 1;
    clock.disruption_marker++;
    clock.vm_generation_counter++;
    return write_both(m, &clock, e);
}
