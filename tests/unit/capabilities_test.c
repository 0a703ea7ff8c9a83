#include "vmm/base/capabilities.h"

#include <criterion/criterion.h>
#include <linux/capability.h>
#include <stdint.h>
#include <sys/syscall.h>

#define DAC_OVERRIDE (UINT64_C(1) << CAP_DAC_OVERRIDE)

struct sets {
    uint64_t effective, permitted, inheritable;
};

static struct sets sets(void)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct w[_LINUX_CAPABILITY_U32S_3];

    cr_assert_eq(syscall(SYS_capget, &header, w), 0);
    return (struct sets){
        w[0].effective | (uint64_t)w[1].effective << 32,
        w[0].permitted | (uint64_t)w[1].permitted << 32,
        w[0].inheritable | (uint64_t)w[1].inheritable << 32,
    };
}

#define expect_sets(e, p, i)                                                                       \
    do {                                                                                           \
        struct sets s = sets();                                                                    \
                                                                                                   \
        cr_expect_eq(s.effective, (e));                                                            \
        cr_expect_eq(s.permitted, (p));                                                            \
        cr_expect_eq(s.inheritable, (i));                                                          \
    } while (0)

/* Each test is a process of its own. One of root's has them all, another has none to keep. */
Test(capabilities, are_all_given_up_by_one_that_keeps_none)
{
    cr_expect_eq(capabilities_hand_down(), 0);
    cr_expect_eq(capabilities_limit(false), 0);
    expect_sets(0, 0, 0);
}

Test(capabilities, that_were_handed_down_are_kept_until_they_are_given_up)
{
    struct sets before = sets();
    uint64_t kept = before.permitted & DAC_OVERRIDE;

    cr_expect_eq(capabilities_hand_down(), 0);
    expect_sets(before.effective, before.permitted, kept);
    cr_expect_eq(capabilities_limit(true), 0);
    expect_sets(kept, kept, kept);
    cr_expect_eq(capabilities_give_up(), 0);
    expect_sets(0, 0, 0);
}

Test(capabilities, that_were_not_handed_down_are_not_kept)
{
    if (sets().inheritable & DAC_OVERRIDE)
        cr_skip_test("this process inherits it anyway");
    cr_expect_eq(capabilities_limit(true), 0);
    expect_sets(0, 0, 0);
}

Test(capabilities, that_the_jailer_did_not_choose_stay)
{
    struct sets before = sets();

    cr_expect_eq(capabilities_give_up(), 0);
    expect_sets(before.effective, before.permitted, before.inheritable);
}
