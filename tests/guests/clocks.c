/*
 * What must go on where it was when a guest is saved and loaded: the TSC and kvmclock of each vCPU,
 * timers that are armed, MSRs. It says "ready" and ends once it has been loaded `rounds` times.
 * Command line: vcpus=N, rounds=N; young: it keeps its TSC within a second of a new machine's, for
 * which KVM has rules of its own.
 */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"
#include "runtime/smp.h"

#define VMCLOCK_GENERATION (0xde000ul + 104)

#define MSR_TSC          0x10
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_KVM_CLOCK    0x4b564d01

#define VECTOR_OF(id)  (VECTOR_TIMER + 2 * (id)) /* of the timer of vCPU 0 and 1 */
#define TIMER_ONE_SHOT 0u
#define TIMER_DEADLINE 0x40000u
#define TIMER_NS       1000000000u
#define TIMER_PATIENCE 20 /* times that, until it is taken for lost */
#define NS_IN_MS       1000000u
#define YOUNG_MS       500 /* more than a load takes, which is the age of a new machine */
#define GROWN_UP_MS    800 /* with what a save takes, less than a second */

#define PIT_GSI 0

/* As in Linux's pvclock-abi.h. */
struct kvmclock {
    uint32_t version, zero;
    uint64_t tsc, ns;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags, zeros[2];
};

static struct seen {
    volatile struct kvmclock *clock;
    uint64_t ns, jump; /* kvmclock; the furthest that it went at once */
    bool clock_back;
    volatile uint64_t fired, armed_in; /* times; generation */
} seen[2];

static uint64_t first_generation;
static uint64_t newest_tsc; /* of all vCPUs */
static volatile uint64_t tsc_back;

static const struct {
    uint32_t index;
    uint64_t value;
} msrs[] = {
    { 0x174, 0x10 }, /* SYSENTER_CS, ESP, EIP */
    { 0x175, 0x34567000 },
    { 0x176, 0x54321000 },
    { 0x200, 0x12340006 }, /* MTRRs, not switched on */
    { 0x201, 0xfffff0000 },
    { 0x20e, 0x56780006 },
    { 0x250, 0x0606060606060606 },
    { 0x26f, 0x0505050505050505 },
    { 0x277, 0x0007010600070406 },      /* PAT */
    { 0x400, ~0ul },                    /* MC0_CTL */
    { 0xc0000081, 0x0013000800000000 }, /* STAR, LSTAR, CSTAR, SFMASK */
    { 0xc0000082, 0x1111000 },
    { 0xc0000083, 0x2222000 },
    { 0xc0000084, 0x700 },
    { 0xc0000102, 0x3333000 }, /* KERNEL_GS_BASE */
    { 0xc0000103, 7 },         /* TSC_AUX */
    { 0x4b564d05, 0 },         /* KVM's own: no polling before a halt */
};

static uint64_t generation(void)
{
    return *(const volatile uint64_t *)VMCLOCK_GENERATION;
}

/* After all that the program has read before. */
static uint64_t tsc_now(void)
{
    __asm__ volatile("lfence" ::: "memory");
    return rdtsc();
}

/* Both factors have 64 bits, the product more. */
static uint64_t ns_of(const volatile struct kvmclock *c, uint64_t ticks)
{
    ticks = c->shift < 0 ? ticks >> -c->shift : ticks << c->shift;
    return (uint64_t)((unsigned __int128)ticks * c->multiplier >> 32);
}

static uint64_t ticks_of(const volatile struct kvmclock *c, uint64_t ns)
{
    uint64_t ticks = (ns << 32) / c->multiplier;

    return c->shift < 0 ? ticks << -c->shift : ticks >> c->shift;
}

static uint64_t kvmclock_now(const volatile struct kvmclock *c)
{
    uint32_t version;
    uint64_t ns;

    do {
        version = __atomic_load_n(&c->version, __ATOMIC_ACQUIRE) & ~1u;
        ns = c->ns + ns_of(c, tsc_now() - c->tsc);
    } while (version != __atomic_load_n(&c->version, __ATOMIC_ACQUIRE));
    return ns;
}

static void kvmclock_start(uint32_t id)
{
    seen[id].clock = alloc_pages(1);
    wrmsr(MSR_KVM_CLOCK, (uint64_t)seen[id].clock | 1);
    seen[id].ns = kvmclock_now(seen[id].clock);
}

/* The vCPUs of a machine have one TSC: what one of them has seen is past for each. */
static void look_at_tsc(void)
{
    uint64_t before = __atomic_load_n(&newest_tsc, __ATOMIC_SEQ_CST), now = tsc_now();

    if (now < before)
        tsc_back = before - now;
    while (before < now && !__atomic_compare_exchange_n(&newest_tsc, &before, now, false,
                                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
}

static void look_at_kvmclock(struct seen *s)
{
    uint64_t ns = kvmclock_now(s->clock);

    /* Without a master clock KVM sets it anew now and then, by its own clock: not to the ns. */
    if (ns + NS_IN_MS < s->ns)
        s->clock_back = true;
    else if (ns > s->ns && ns - s->ns > s->jump)
        s->jump = ns - s->ns;
    s->ns = ns;
}

static void on_timer(unsigned vector)
{
    seen[vector != VECTOR_OF(0)].fired++;
}

/* By TSC deadline on the first vCPU, by the count of the local APIC on the other. */
static void arm(uint32_t id)
{
    struct seen *s = &seen[id];
    uint64_t ticks = ticks_of(s->clock, TIMER_NS);

    s->armed_in = generation();
    s->fired = 0;
    mmio_write32(LAPIC + LAPIC_TIMER, VECTOR_OF(id) | (id == 0 ? TIMER_DEADLINE : TIMER_ONE_SHOT));
    if (id == 0) {
        wrmsr(MSR_TSC_DEADLINE, rdtsc() + ticks);
        return;
    }
    mmio_write32(LAPIC + LAPIC_DIVIDE, 0xb);
    mmio_write32(LAPIC + LAPIC_INITIAL, TIMER_NS);
}

static void look(uint32_t id)
{
    look_at_tsc();
    look_at_kvmclock(&seen[id]);
    if (seen[id].fired > 0)
        arm(id);
    __asm__ volatile("sti; nop; cli" ::: "memory");
}

static void look_without_end(uint32_t id)
{
    kvmclock_start(id);
    arm(id);
    for (;;)
        look(id);
}

/* A moment, in which the guest may be saved. */
static void be_young(void)
{
    const uint64_t grown_up = ticks_of(seen[0].clock, GROWN_UP_MS * NS_IN_MS);

    newest_tsc = 0;
    wrmsr(MSR_TSC, ticks_of(seen[0].clock, YOUNG_MS * NS_IN_MS));
    while (newest_tsc < grown_up)
        look_at_tsc();
}

static void write_msrs(void)
{
    for (unsigned i = 0; i < sizeof(msrs) / sizeof(*msrs); i++)
        wrmsr(msrs[i].index, msrs[i].value);
}

static void check_msrs(void)
{
    unsigned right = 0;

    for (unsigned i = 0; i < sizeof(msrs) / sizeof(*msrs); i++) {
        if (rdmsr(msrs[i].index) == msrs[i].value)
            right++;
        else
            print("MSR 0x%x is 0x%lx\n", msrs[i].index, rdmsr(msrs[i].index));
    }
    expect_equal(right, sizeof(msrs) / sizeof(*msrs), "each_msr_is_as_it_was_written");
}

/* The TSC at which what has not come by then is taken for lost. */
static uint64_t patience(void)
{
    return rdtsc() + TIMER_PATIENCE * ticks_of(seen[0].clock, TIMER_NS);
}

/* One that fires is armed again. */
static bool all_timers_are_armed_in(uint64_t now, unsigned vcpus)
{
    const uint64_t end = patience();

    for (uint32_t id = 0; id < vcpus; id++)
        while (seen[id].armed_in != now) {
            if (rdtsc() > end)
                return false;
            look(0);
        }
    return true;
}

static void pit_start(void)
{
    ioapic_route(PIT_GSI);
    outb(0x43, 0x34); /* channel 0, rate generator */
    outb(0x40, 0x00);
    outb(0x40, 0x00); /* 55 ms */
}

static bool pit_goes_on(void)
{
    const uint64_t before = interrupt_count[VECTOR_GSI0 + PIT_GSI];
    const uint64_t end = patience();

    while (interrupt_count[VECTOR_GSI0 + PIT_GSI] == before && rdtsc() < end)
        look(0);
    return interrupt_count[VECTOR_GSI0 + PIT_GSI] != before;
}

/* Until it is another machine. */
static void go_through(uint64_t before, unsigned vcpus)
{
    while (generation() == before)
        look(0);
    expect(all_timers_are_armed_in(before + 1, vcpus), "each_timer_fires_that_was_armed_before");
    expect(pit_goes_on(), "the_pit_goes_on");
    check_msrs();
    print("kvmclock went on by up to %lu ms\n", seen[0].jump / NS_IN_MS);
    seen[0].jump = 0;
    print("generation %lu\n", generation() - first_generation);
}

static void stay_young(uint64_t before)
{
    while (generation() == before)
        be_young();
    expect(tsc_back == 0, "the_tsc_of_a_young_guest_does_not_go_back");
}

static void start_all(unsigned vcpus)
{
    interrupt_handle(VECTOR_OF(0), on_timer);
    interrupt_handle(VECTOR_OF(1), on_timer);
    for (uint32_t id = 1; id < vcpus; id++)
        expect(smp_start(id, look_without_end), "the_other_vcpu_starts");
    pit_start();
    write_msrs();
    arm(0);
}

void guest_main(void)
{
    const unsigned vcpus = (unsigned)boot_number("vcpus", 1);
    const uint64_t rounds = boot_number("rounds", 1);

    first_generation = generation();
    kvmclock_start(0);
    if (boot_has("young")) {
        print("ready\n");
        stay_young(first_generation);
        return;
    }
    start_all(vcpus);
    print("ready\n");
    for (uint64_t i = 0; i < rounds; i++)
        go_through(first_generation + i, vcpus);
    expect(tsc_back == 0, "the_tsc_does_not_go_back");
    for (uint32_t id = 0; id < vcpus; id++)
        expect(!seen[id].clock_back, "kvmclock_does_not_go_back");
    wait_for_host("end"); /* who looks at this machine from outside */
}
