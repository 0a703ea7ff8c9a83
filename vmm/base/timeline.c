#include "vmm/base/timeline.h"

#include <stdatomic.h>

#include "vmm/base/clock.h"
#include "vmm/base/metrics.h"

static struct {
    uint64_t start_us;
    metric at[PHASES]; /* monotonic_us(); 0: not reached */
} timeline;

void timeline_init(void)
{
    uint64_t used_us = clock_us(CLOCK_PROCESS_CPUTIME_ID);

    timeline_mark(PHASE_MAIN);
    timeline.start_us = metric_get(&timeline.at[PHASE_MAIN]) - used_us;
}

void timeline_begin(uint64_t start_us)
{
    if (start_us && start_us < timeline.start_us)
        timeline.start_us = start_us;
}

void timeline_mark(enum phase p)
{
    uint64_t never = 0;

    if (p == PHASE_INSTANCE_START)
        for (unsigned i = p; i < PHASES; i++)
            metric_set(&timeline.at[i], 0);
    atomic_compare_exchange_strong(&timeline.at[p], &never, monotonic_us());
}

const char *timeline_name(enum phase p)
{
    static const char *const names[PHASES] = {
        [PHASE_MAIN] = "main_us",
        [PHASE_API_READY] = "api_ready_us",
        [PHASE_INSTANCE_START] = "instance_start_us",
        [PHASE_GUEST_LOADED] = "guest_loaded_us",
        [PHASE_KVM_VM] = "kvm_vm_us",
        [PHASE_KVM_MEMORY] = "kvm_memory_us",
        [PHASE_KVM_IRQCHIP] = "kvm_irqchip_us",
        [PHASE_KVM_VCPUS] = "kvm_vcpus_us",
        [PHASE_DEVICES] = "devices_us",
        [PHASE_GUEST_ENTRY] = "guest_entry_us",
        [PHASE_STARTED] = "started_us",
        [PHASE_GUEST_MARK] = "guest_mark_us",
    };

    return names[p];
}

uint64_t timeline_start_us(void)
{
    return timeline.start_us;
}

int64_t timeline_us(enum phase p)
{
    uint64_t at = metric_get(&timeline.at[p]);

    return at ? (int64_t)(at - timeline.start_us) : -1;
}
