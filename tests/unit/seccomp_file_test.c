#include "vmm/seccomp/file.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/unit/support/files.h"

static char path[] = NEW_FILE;
static struct seccomp_threads filters;
static struct error e;

/* A file in the making. */
static char file[200000];
static size_t used;

static void set_up(void)
{
    close(new_file(path));
    used = 0;
}

static void tear_down(void)
{
    unlink(path);
}

TestSuite(seccomp_file, .init = set_up, .fini = tear_down);

static void add_length(uint64_t n)
{
    memcpy(file + used, &n, sizeof(n));
    used += sizeof(n);
}

/* A filter of steps that are told apart by `mark`. */
static void add_filter(const char *name, uint64_t steps, uint32_t mark)
{
    add_length(strlen(name));
    memcpy(file + used, name, strlen(name));
    used += strlen(name);
    add_length(steps);
    for (uint64_t i = 0; i < steps; i++) {
        const struct sock_filter step = { 0x06, 1, 2, mark };

        memcpy(file + used, &step, sizeof(step));
        used += sizeof(step);
    }
}

static int read_filters(void)
{
    int fd = open(path, O_WRONLY | O_TRUNC);

    cr_assert_eq((size_t)write(fd, file, used), used);
    close(fd);
    return seccomp_file_read(&filters, path, &e);
}

static void add_three(const char *first, const char *second, const char *third)
{
    add_length(3);
    add_filter(first, 1, 10);
    add_filter(second, 2, 20);
    add_filter(third, 3, 30);
}

Test(seccomp_file, has_a_filter_for_each_thread_in_any_order)
{
    add_three("api", "vcpu", "vmm");
    cr_assert_eq(read_filters(), 0, "%s", e.msg);
    cr_expect_eq(filters.main->len, 3);
    cr_expect_eq(filters.main->filter[2].k, 30);
    cr_expect_eq(filters.vcpu->len, 2);
    cr_expect_eq(filters.vcpu->filter[1].k, 20);
    cr_expect_eq(filters.vcpu->filter[1].code, 0x06);
    cr_expect_eq(filters.vcpu->filter[1].jt, 1);
    cr_expect_eq(filters.vcpu->filter[1].jf, 2);
}

Test(seccomp_file, may_have_filters_of_the_kernel_s_limit)
{
    add_length(3);
    add_filter("vmm", BPF_MAXINSNS, 1);
    add_filter("vcpu", BPF_MAXINSNS, 2);
    add_filter("api", BPF_MAXINSNS, 3);
    cr_assert_leq(used, 100000);
    cr_assert_eq(read_filters(), 0, "%s", e.msg);
    cr_expect_eq(filters.main->len, BPF_MAXINSNS);
    cr_expect_eq(filters.vcpu->filter[BPF_MAXINSNS - 1].k, 2);
}

static void *write_in_pieces(void *unused)
{
    int fd = open(path, O_WRONLY);

    for (size_t i = 0; i < used; i++)
        cr_expect_eq(write(fd, file + i, 1), 1);
    close(fd);
    return unused;
}

Test(seccomp_file, may_come_by_a_fifo)
{
    pthread_t writer;

    add_three("vmm", "api", "vcpu");
    unlink(path);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_assert_eq(pthread_create(&writer, NULL, write_in_pieces, NULL), 0);
    cr_assert_eq(seccomp_file_read(&filters, path, &e), 0, "%s", e.msg);
    pthread_join(writer, NULL);
    cr_expect_eq(filters.main->len, 1);
}

static void expect_refused(const char *why)
{
    char expected[256];

    snprintf(expected, sizeof(expected),
             "Filter deserialization failed: %s does not have the three filters vmm, api and vcpu "
             "as seccompiler-bin writes them",
             path);
    cr_expect_eq(read_filters(), -1, "%s is taken", why);
    cr_expect_str_eq(e.msg, expected, "%s", why);
    used = 0;
}

Test(seccomp_file, is_refused_where_it_is_cut_off)
{
    add_three("vmm", "api", "vcpu");
    for (size_t whole = used, n = 0; n < whole; n++) {
        used = n;
        expect_refused("a part");
    }
}

Test(seccomp_file, is_refused_when_it_is_not_what_the_threads_need)
{
    add_three("vmm", "api", "vmm");
    expect_refused("one thread twice");
    add_three("vmm", "api", "disk");
    expect_refused("a thread that is not ours");
    add_three("vmm", "api", "vcpux");
    expect_refused("a name that only begins so");
    add_length(2);
    add_filter("vmm", 1, 1);
    add_filter("vcpu", 1, 1);
    expect_refused("two filters");
    add_three("vmm", "api", "vcpu");
    file[0] = 2;
    expect_refused("three filters where there should be two");
    add_three("vmm", "api", "vcpu");
    file[used++] = 0;
    expect_refused("a byte too many");
    add_length(3);
    add_filter("vmm", 0, 1);
    add_filter("api", 1, 1);
    add_filter("vcpu", 1, 1);
    expect_refused("a filter of nothing");
    add_three("vmm", "api", "vcpu-vcpu-vcpu-vc");
    expect_refused("a name of 17 bytes");
    add_three("vmm", "api", "vcpu-vcpu-vcpu-v");
    expect_refused("a name of 16 bytes");
    add_length(3);
    add_filter("vmm", BPF_MAXINSNS + 1, 1);
    expect_refused("a filter that is too long");
    add_length(3);
    add_length(UINT64_MAX);
    expect_refused("a length that overflows");
    used = sizeof(file);
    expect_refused("a large file");
}

Test(seccomp_file, must_be_readable)
{
    cr_expect_eq(seccomp_file_read(&filters, "/none", &e), -1);
    cr_expect_str_eq(e.msg, "Filter file open error: No such file or directory (os error 2) /none");
    cr_expect_eq(seccomp_file_read(&filters, "/", &e), -1);
    cr_expect_str_eq(e.msg, "Filter file read error: Is a directory (os error 21) /");
}
