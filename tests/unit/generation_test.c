#include "vmm/legacy/generation.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct guest_mem mem;
static struct error e;

static int failures, failure; /* so often getrandom() fails first, and how */

/* In the place of libc's. */
ssize_t getrandom(void *to, size_t n, unsigned flags)
{
    if (failures == 0)
        return syscall(SYS_getrandom, to, n, flags);
    failures--;
    errno = failure;
    return -1;
}

static void write_for_a_guest(void)
{
    gmem_fini(&mem);
    cr_assert_eq(gmem_init(&mem, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(generation_write(&mem, &e), 0, "%s", e.msg);
}

Test(generation_write, gives_each_guest_a_vmgenid_of_its_own)
{
    static const uint8_t zeroes[16];
    uint8_t first[16], second[16];

    write_for_a_guest();
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_VMGENID), &first), 0);
    write_for_a_guest();
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_VMGENID), &second), 0);
    cr_expect_neq(memcmp(first, zeroes, 16), 0);
    cr_expect_neq(memcmp(first, second, 16), 0);
}

Test(generation_write, has_a_vmclock_that_tells_no_time)
{
    uint8_t clock[112];
    uint32_t word;
    uint64_t flags;

    write_for_a_guest();
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_VMCLOCK), &clock), 0);
    cr_expect_eq(memcmp(clock, "VCLK", 4), 0);
    memcpy(&word, clock + 4, 4);
    cr_expect_eq(word, 0x1000);
    cr_expect_eq(clock[8], 1, "version");
    cr_expect_eq(clock[10], 0xff, "no counter");
    memcpy(&word, clock + 12, 4);
    cr_expect_eq(word, 0, "stable");
    memcpy(&flags, clock + 24, 8);
    cr_expect_eq(flags, 0x300, "generation counter and notification");
    cr_expect_eq(clock[34], 0, "status unknown");
}

Test(generation_write, fails_where_there_is_no_memory)
{
    gmem_fini(&mem);
    cr_expect_eq(generation_write(&mem, &e), -1);
    cr_expect_str_eq(e.msg, "guest memory is too small for VMGenID and VMClock");
}

Test(generation_write, asks_again_when_a_signal_comes_and_only_then)
{
    failures = 2;
    failure = EINTR;
    write_for_a_guest();
    cr_expect_eq(failures, 0);
    failures = 2;
    failure = ENOSYS;
    cr_expect_eq(generation_write(&mem, &e), -1);
    cr_expect_eq(failures, 1);
    cr_expect(strstr(e.msg, "Cannot get random bytes for the VM Generation ID"), "%s", e.msg);
}

Test(generation_renew, tells_a_clone_by_a_new_id_and_a_clock_that_counts)
{
    struct {
        uint8_t before[12];
        uint32_t sequence;
        uint64_t disruptions;
        uint8_t between[80];
        uint64_t generation;
    } clock, renewed;
    uint8_t first[16], second[16];

    write_for_a_guest();
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_VMGENID), &first), 0);
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_VMCLOCK), &clock), 0);
    cr_assert_eq(generation_renew(&mem, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_VMGENID), &second), 0);
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_VMCLOCK), &renewed), 0);
    cr_expect_neq(memcmp(first, second, sizeof(first)), 0);
    cr_expect_eq(renewed.generation, clock.generation + 1);
    cr_expect_eq(renewed.disruptions, clock.disruptions + 1);
    cr_expect(renewed.sequence != clock.sequence && renewed.sequence % 2 == 0);
    cr_expect_arr_eq(renewed.before, clock.before, sizeof(clock.before));
    cr_expect_arr_eq(renewed.between, clock.between, sizeof(clock.between));
}

Test(generation_renew, is_consistent_whatever_a_guest_has_written)
{
    uint8_t page[112];
    uint32_t sequence;

    write_for_a_guest();
    memset(page, 0xff, sizeof(page));
    cr_assert_eq(gmem_put(&mem, gpa(LAYOUT_VMCLOCK), &page), 0);
    cr_assert_eq(generation_renew(&mem, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_VMCLOCK + 12), &sequence), 0);
    cr_expect_eq(sequence % 2, 0);
}
