/*
 * Compiles the policy while building: writes the filters as C (the default), with --list as text, a
 * line a row, for whoever wants to compare it with what a process calls, or with --json as
 * Firecracker writes its own, for seccompiler-bin and for those who read it.
 *
 * A filter is either a list in the order of the policy's rows, or a balanced tree. Loading one
 * costs more than running it: the kernel (5.11) tries every call's number, to find those that need
 * no filter at all. A tree makes that quick; the vCPUs' short filter is a list, with KVM_RUN first.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/sockios.h>
#include <sched.h>
#include <signal.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/mman.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sys/resource.h>
#include <sys/un.h>

#include "vmm/seccomp/seccomp.h"

#define START  1u
#define MAIN   2u
#define VCPU   4u
#define PAGER  8u
#define UNSEEN 16u
#define EVER   (START | MAIN)
#define BOTH   (MAIN | VCPU)
#define EACH   (BOTH | PAGER)

#define OWN_PID SECCOMP_OWN_PID

/* What pthread_create() asks for. */
#define THREAD_FLAGS                                                                               \
    (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |            \
     CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

#define IS(arg, value)                                                                             \
    {                                                                                              \
        (arg), SCMP_CMP_EQ, (uint32_t)(value), 0                                                   \
    }
#define HAS_NONE_OF(arg, bits)                                                                     \
    {                                                                                              \
        (arg), SCMP_CMP_MASKED_EQ, (bits), 0                                                       \
    }
#define HAS_ONLY(arg, bits)                                                                        \
    {                                                                                              \
        (arg), SCMP_CMP_MASKED_EQ, (uint32_t) ~(bits), 0                                           \
    }
#define ALL(...)  __VA_ARGS__
#define TESTS_MAX 4

static const struct row {
    unsigned who;
    int call;
    uint32_t action;
    unsigned count; /* of tests, all of which it must pass */
    struct scmp_arg_cmp tests[TESTS_MAX];
    const char *text, *why;
} rows[] = {
#define SIZE(...)            sizeof((struct scmp_arg_cmp[]){ __VA_ARGS__ })
#define COUNT(...)           (SIZE(__VA_ARGS__) / sizeof(struct scmp_arg_cmp))
#define ALLOW(w, c, y)       { w, SCMP_SYS(c), SCMP_ACT_ALLOW, 0, { { 0 } }, #c, y },
#define ALLOW_IF(w, c, t, y) { w, SCMP_SYS(c), SCMP_ACT_ALLOW, COUNT(t), { t }, #c " " #t, y },
#define REFUSE(w, c, e, y)   { w, SCMP_SYS(c), SCMP_ACT_ERRNO(e), 0, { { 0 } }, #c, y },
#include "vmm/seccomp/policy.h"
};
#define ROWS (sizeof(rows) / sizeof(*rows))

static const struct {
    const char *name;
    unsigned who;
    bool is_tree;
} filters[] = {
    { "process", START | EACH, true },
    { "main", MAIN, true },
    { "vcpu", VCPU, false },
    { "pager", PAGER, false },
};
#define FILTERS (sizeof(filters) / sizeof(*filters))

static void check(int ret, const char *what)
{
    if (ret >= 0)
        return;
    fprintf(stderr, "seccomp policy: %s: %s\n", what, strerror(-ret));
    exit(1);
}

/* Takes a step out. What leads to it leads to the next one. */
static void take_out(struct sock_filter *program, size_t *n, size_t at)
{
    for (size_t i = 0; i < at; i++) {
        struct sock_filter *s = &program[i];

        if (BPF_CLASS(s->code) != BPF_JMP)
            continue;
        if (s->code == (BPF_JMP | BPF_JA) && i + 1 + s->k > at)
            s->k--;
        if (i + 1 + s->jt > at)
            s->jt--;
        if (i + 1 + s->jf > at)
            s->jf--;
    }
    --*n;
    memmove(&program[at], &program[at + 1], (*n - at) * sizeof(*program));
}

/* libseccomp compares both halves of an argument with a mask, also where that has no bit in one. */
static void drop_empty_masks(struct sock_filter *program, size_t *n)
{
    for (size_t at = 0; at + 3 < *n; at++) {
        const struct sock_filter *s = &program[at];

        if (s[0].code != (BPF_LD | BPF_W | BPF_ABS) || s[1].code != (BPF_ALU | BPF_AND | BPF_K) ||
            s[1].k != 0 || s[2].code != (BPF_JMP | BPF_JEQ | BPF_K) || s[2].k != 0 ||
            s[2].jt != 0 || s[3].code != (BPF_LD | BPF_W | BPF_ABS))
            continue;
        for (unsigned i = 0; i < 3; i++)
            take_out(program, n, at);
    }
}

/* The first row of a filter that asks for a value. */
static size_t row_that_asks_for(unsigned who, uint32_t value)
{
    for (size_t i = 0; i < ROWS; i++)
        for (unsigned t = 0; rows[i].who & who && t < rows[i].count; t++)
            if (rows[i].tests[t].op == SCMP_CMP_EQ && rows[i].tests[t].datum_a == value)
                return i;
    return ROWS;
}

/* How many comparisons from here on go on to the next or allow the call: their order is free. */
static size_t count_comparisons(const struct sock_filter *program, size_t n, size_t at)
{
    size_t count = 0;

    for (bool is_last = false; !is_last && at < n; at++, count++) {
        const struct sock_filter *s = &program[at];

        if (s->code != (BPF_JMP | BPF_JEQ | BPF_K) || at + 1 + s->jt >= n ||
            program[at + 1 + s->jt].code != (BPF_RET | BPF_K) ||
            program[at + 1 + s->jt].k != SECCOMP_RET_ALLOW)
            break;
        is_last = s->jf > 0;
    }
    return count;
}

/* By the rows that ask for the values. */
static void sort_comparisons(struct sock_filter *s, size_t count, unsigned who)
{
    for (size_t i = 1; i < count; i++) {
        const uint32_t value = s[i].k;
        const size_t row = row_that_asks_for(who, value);
        size_t j = i;

        for (; j > 0 && row_that_asks_for(who, s[j - 1].k) > row; j--)
            s[j].k = s[j - 1].k;
        s[j].k = value;
    }
}

/* libseccomp compares an argument with values by their size; the policy's order is by how frequent
 * they are. */
static void order_comparisons(struct sock_filter *program, size_t n, unsigned who)
{
    for (size_t at = 0; at + 1 < n; at++)
        if (program[at].code == (BPF_LD | BPF_W | BPF_ABS) &&
            program[at].k >= offsetof(struct seccomp_data, args))
            sort_comparisons(&program[at + 1], count_comparisons(program, n, at + 1), who);
}

/* The exported program, which the kernel checks again when it is loaded. */
static void write_program(const char *name, unsigned who, scmp_filter_ctx ctx)
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
    drop_empty_masks(program, &n);
    order_comparisons(program, n, who);
    printf("static const struct sock_filter filter_%s[] = {\n", name);
    for (size_t i = 0; i < n; i++)
        printf("    { 0x%02x, %u, %u, 0x%08x },\n", program[i].code, program[i].jt, program[i].jf,
               program[i].k);
    printf("};\n"
           "const struct sock_fprog seccomp_%s = { %zu, (struct sock_filter *)filter_%s };\n\n",
           name, n, name);
}

static void compile(const char *name, unsigned who, bool is_tree)
{
    scmp_filter_ctx ctx = seccomp_init(DEFAULT_ACTION);

    check(ctx ? 0 : -ENOMEM, name);
    check(seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS), "architecture");
    check(seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, is_tree ? 2 : 1), "optimisation");
    for (size_t i = 0; i < ROWS; i++)
        if (rows[i].who & who)
            check(seccomp_rule_add_array(ctx, rows[i].action, rows[i].call, rows[i].count,
                                         rows[i].tests),
                  rows[i].text);
    for (size_t i = ROWS; i-- > 0;) /* the first row of a call decides */
        if (rows[i].who & who)
            check(seccomp_syscall_priority(ctx, rows[i].call, i < 255 ? (uint8_t)(255 - i) : 0),
                  rows[i].text);
    write_program(name, who, ctx);
    seccomp_release(ctx);
}

static void list_test(const struct scmp_arg_cmp *t)
{
    bool is_exact = t->op == SCMP_CMP_EQ;

    printf("\t%u\t%llu\t%llu", t->arg, is_exact ? ~0ULL : (unsigned long long)t->datum_a,
           (unsigned long long)(is_exact ? t->datum_a : t->datum_b));
}

/* For each row of a filter: the filter, the row's number, the call (and tests), why, "unseen" or
 * "seen", and for each test the number of an argument, a mask, and the value that the masked
 * argument must have; separated by tabs. */
static void list(void)
{
    for (size_t f = 0; f < FILTERS; f++)
        for (size_t i = 0; i < ROWS; i++) {
            const struct row *r = &rows[i];

            if (!(r->who & filters[f].who))
                continue;
            printf("%s\t%zu\t%s\t%s\t%s", filters[f].name, i, r->text, r->why,
                   r->who & UNSEEN ? "unseen" : "seen");
            for (unsigned t = 0; t < r->count; t++)
                list_test(&r->tests[t]);
            putchar('\n');
        }
}

static void print_json_test(const struct scmp_arg_cmp *t)
{
    printf("{ \"index\": %u, \"type\": \"qword\", \"op\": ", t->arg);
    if (t->op == SCMP_CMP_EQ)
        printf("\"eq\", \"val\": %llu }", (unsigned long long)t->datum_a);
    else
        printf("{ \"masked_eq\": %llu }, \"val\": %llu }", (unsigned long long)t->datum_a,
               (unsigned long long)t->datum_b);
}

static void print_json_row(const struct row *r)
{
    /* The text begins with the call's name. No text has a character that JSON escapes. */
    printf("      { \"syscall\": \"%.*s\"", (int)strcspn(r->text, " "), r->text);
    for (unsigned t = 0; t < r->count; t++) {
        printf(t == 0 ? ", \"args\": [" : ", ");
        print_json_test(&r->tests[t]);
    }
    printf("%s, \"comment\": \"%s\" }", r->count > 0 ? "]" : "", r->why);
}

/* The filters that --seccomp-filter replaces, by the names of Firecracker's threads. `api` must be
 * there, but is nobody's. */
static void print_json(void)
{
    static const struct {
        const char *name;
        unsigned who;
    } threads[] = { { "vmm", MAIN }, { "api", 0 }, { "vcpu", VCPU } };

    for (size_t i = 0; i < sizeof(threads) / sizeof(*threads); i++) {
        const char *before = "\n";

        printf("%s  \"%s\": {\n    \"default_action\": \"trap\",\n"
               "    \"filter_action\": \"allow\",\n    \"filter\": [",
               i == 0 ? "{\n" : ",\n", threads[i].name);
        for (size_t r = 0; r < ROWS; r++)
            if (rows[r].who & threads[i].who && rows[r].action == SCMP_ACT_ALLOW) {
                printf("%s", before);
                print_json_row(&rows[r]);
                before = ",\n";
            }
        printf("\n    ]\n  }");
    }
    printf("\n}\n");
}

int main(int argc, char **argv)
{
    bool is_json = argc > 1 && strcmp(argv[1], "--json") == 0;

    if (is_json || (argc > 1 && strcmp(argv[1], "--list") == 0)) {
        (is_json ? print_json : list)();
        return fflush(stdout) == 0 ? 0 : 1;
    }
    printf("#include \"vmm/seccomp/seccomp.h\"\n\n");
    for (size_t i = 0; i < FILTERS; i++)
        compile(filters[i].name, filters[i].who, filters[i].is_tree);
    printf("const struct seccomp_threads seccomp_threads = { &seccomp_main, &seccomp_vcpu, "
           "&seccomp_pager };\n");
    return fflush(stdout) == 0 ? 0 : 1;
}
