/*
 * Compiles the policy while building: writes the filters as C (the default), or with --list as
 * text, a line a row, for whoever wants to compare it with what a process calls.
 *
 * A row of the table is turned into libseccomp rules of one or two filters. The trees are balanced
 * (SCMP_FLTATR_CTL_OPTIMIZE), but for what is decided first: KVM_RUN, by its priority.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <sched.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/seccomp.h>

#include "vmm/seccomp/seccomp.h"

#define START 1u
#define MAIN  2u
#define VCPU  4u
#define BOTH  (MAIN | VCPU)

/* Tests of the argument in that place, from 0. */
#define IS(arg, value)                                                                             \
    {                                                                                              \
        (arg), SCMP_CMP_MASKED_EQ, UINT32_MAX, (uint32_t)(value)                                   \
    }
#define HAS_NONE_OF(arg, bits)                                                                     \
    {                                                                                              \
        (arg), SCMP_CMP_MASKED_EQ, (bits), 0                                                       \
    }
#define HAS_ALL_OF(arg, bits)                                                                      \
    {                                                                                              \
        (arg), SCMP_CMP_MASKED_EQ, (bits), (bits)                                                  \
    }
#define HAS_ONLY(arg, bits)                                                                        \
    {                                                                                              \
        (arg), SCMP_CMP_MASKED_EQ, (uint32_t) ~(bits), 0                                           \
    }

#define TESTS_MAX 2

static const struct row {
    unsigned who;
    int call;
    unsigned count;
    struct scmp_arg_cmp tests[TESTS_MAX];
    const char *name, *test, *why;
} rows[] = {
#define ALLOW(w, c, y)         { w, SCMP_SYS(c), 0, { { 0 } }, #c, "", y },
#define ALLOW_1(w, c, t, y)    { w, SCMP_SYS(c), 1, { t }, #c, #t, y },
#define ALLOW_2(w, c, t, u, y) { w, SCMP_SYS(c), 2, { t, u }, #c, #t " " #u, y },
#include "vmm/seccomp/policy.h"
};
#define ROWS (sizeof(rows) / sizeof(*rows))

static const struct {
    const char *name;
    unsigned who;
} filters[SECCOMP_FILTERS] = {
    [SECCOMP_PROCESS] = { "process", START | BOTH },
    [SECCOMP_MAIN] = { "main", MAIN },
    [SECCOMP_VCPU] = { "vcpu", VCPU },
};

static void check(int ret, const char *what)
{
    if (ret >= 0)
        return;
    fprintf(stderr, "seccomp policy: %s: %s\n", what, strerror(-ret));
    exit(1);
}

/* The exported program, which the kernel checks again when it is loaded. */
static void write_program(const char *name, scmp_filter_ctx ctx)
{
    static struct sock_filter program[BPF_MAXINSNS];
    FILE *f = tmpfile();
    size_t n;

    check(f ? 0 : -errno, "temporary file");
    check(seccomp_export_bpf(ctx, fileno(f)), "export");
    rewind(f);
    n = fread(program, sizeof(*program), BPF_MAXINSNS, f);
    check(n > 0 && feof(f) ? 0 : -E2BIG, name);
    fclose(f);
    printf("static const struct sock_filter filter_%s[] = {\n", name);
    for (size_t i = 0; i < n; i++)
        printf("    { 0x%02x, %u, %u, 0x%08x },\n", program[i].code, program[i].jt, program[i].jf,
               program[i].k);
    printf("};\n\n");
}

static void compile(const char *name, unsigned who)
{
    scmp_filter_ctx ctx = seccomp_init(DEFAULT_ACTION);

    check(ctx ? 0 : -ENOMEM, name);
    check(seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2), "optimisation");
    check(seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS), "architecture");
    for (size_t i = 0; i < ROWS; i++)
        if (rows[i].who & who)
            check(seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, rows[i].call, rows[i].count,
                                         rows[i].tests),
                  rows[i].name);
    write_program(name, ctx);
    seccomp_release(ctx);
}

static void list(void)
{
    for (size_t f = 0; f < SECCOMP_FILTERS; f++)
        for (size_t i = 0; i < ROWS; i++) {
            const struct row *r = &rows[i];

            if (!(r->who & filters[f].who))
                continue;
            printf("%s\t%s\t%d\t%s\t%s", filters[f].name, r->name, r->call, r->test, r->why);
            for (unsigned t = 0; t < r->count; t++)
                printf("\t%u %llu %llu", r->tests[t].arg, (unsigned long long)r->tests[t].datum_a,
                       (unsigned long long)r->tests[t].datum_b);
            putchar('\n');
        }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--list") == 0) {
        list();
        return 0;
    }
    printf("#include \"vmm/seccomp/seccomp.h\"\n\n");
    for (size_t i = 0; i < SECCOMP_FILTERS; i++)
        compile(filters[i].name, filters[i].who);
    printf("#define PROGRAM(p) { sizeof(filter_##p) / sizeof(*filter_##p), (struct sock_filter "
           "*)filter_##p }\n"
           "const struct sock_fprog seccomp_programs[SECCOMP_FILTERS] = {\n");
    for (size_t i = 0; i < SECCOMP_FILTERS; i++)
        printf("    PROGRAM(%s),\n", filters[i].name);
    printf("};\n");
    return fflush(stdout) == 0 ? 0 : 1;
}
