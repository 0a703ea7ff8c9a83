#include "vmm/base/timeline.h"

#include <criterion/criterion.h>

Test(timeline, keeps_the_first_time)
{
    int64_t first;

    timeline_init();
    cr_expect_geq(timeline_us(PHASE_MAIN), 0);
    cr_expect_eq(timeline_us(PHASE_API_READY), -1);
    timeline_mark(PHASE_API_READY);
    first = timeline_us(PHASE_API_READY);
    timeline_mark(PHASE_API_READY);
    cr_expect_eq(timeline_us(PHASE_API_READY), first);
}

Test(timeline, forgets_a_start_that_failed)
{
    timeline_init();
    timeline_mark(PHASE_API_READY);
    timeline_mark(PHASE_INSTANCE_START);
    timeline_mark(PHASE_KVM_VM);
    timeline_mark(PHASE_INSTANCE_START);
    cr_expect_eq(timeline_us(PHASE_KVM_VM), -1);
    cr_expect_geq(timeline_us(PHASE_API_READY), 0);
}

Test(timeline, begins_where_the_jailer_did_but_not_in_the_future)
{
    int64_t before;

    timeline_init();
    before = timeline_us(PHASE_MAIN);
    timeline_begin(UINT64_MAX);
    cr_expect_eq(timeline_us(PHASE_MAIN), before);
    timeline_begin(1);
    cr_expect_gt(timeline_us(PHASE_MAIN), before);
}

Test(timeline, has_a_name_for_each_phase)
{
    for (enum phase p = 0; p < PHASES; p++)
        cr_expect_not_null(timeline_name(p));
}
