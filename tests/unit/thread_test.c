#include "vmm/base/thread.h"

#include <criterion/criterion.h>
#include <sys/prctl.h>

struct seen {
    char name[THREAD_NAME_BYTES];
    size_t stack_bytes;
};

static void *look(void *arg)
{
    struct seen *s = arg;
    pthread_attr_t attr;

    prctl(PR_GET_NAME, s->name);
    pthread_getattr_np(pthread_self(), &attr);
    pthread_attr_getstacksize(&attr, &s->stack_bytes);
    pthread_attr_destroy(&attr);
    return NULL;
}

static void expect_thread(const char *given, const char *name)
{
    char own[THREAD_NAME_BYTES];
    struct seen s;
    pthread_t thread;

    cr_assert_eq(thread_start(&thread, given, look, &s), 0);
    pthread_join(thread, NULL);
    cr_expect_str_eq(s.name, name);
    cr_expect_eq(s.stack_bytes, 64u << 10);
    prctl(PR_GET_NAME, own);
    cr_expect_str_eq(own, "the caller");
}

Test(thread, has_its_name_and_a_small_stack)
{
    prctl(PR_SET_NAME, "the caller");
    expect_thread("fc_vcpu 0", "fc_vcpu 0");
    expect_thread("a name that is long", "a name that is ");
}
