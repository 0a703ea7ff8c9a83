#include "vmm/seccomp/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "vmm/base/whole_file.h"

#define FILE_MAX_BYTES 100000u /* Firecracker's own limit: more than three filters can have */
#define NAME_MAX_BYTES 16u

enum { THREAD_VMM, THREAD_VCPU, THREAD_API, THREADS };
static const char *const names[THREADS] = { "vmm", "vcpu", "api" };

/* What is left to be read. */
struct bytes {
    const char *at;
    size_t left;
};

static bool take(struct bytes *b, void *out, size_t n)
{
    if (n > b->left)
        return false;
    memcpy(out, b->at, n);
    b->at += n;
    b->left -= n;
    return true;
}

/* A length, then that many elements, each of so many bytes. */
static bool take_counted(struct bytes *b, void *out, uint64_t max, size_t element_bytes,
                         uint64_t *count)
{
    return take(b, count, sizeof(*count)) && *count <= max &&
           take(b, out, (size_t)*count * element_bytes);
}

static bool take_filter(struct bytes *b, struct sock_fprog programs[THREADS])
{
    static struct sock_filter steps[THREADS][BPF_MAXINSNS];
    char name[NAME_MAX_BYTES + 1] = "";
    uint64_t count;
    unsigned i = 0;

    if (!take_counted(b, name, NAME_MAX_BYTES, 1, &count))
        return false;
    while (i < THREADS && strcmp(name, names[i]) != 0)
        i++;
    if (i == THREADS || programs[i].len > 0 ||
        !take_counted(b, steps[i], BPF_MAXINSNS, sizeof(**steps), &count) || count == 0)
        return false;
    programs[i] = (struct sock_fprog){ (unsigned short)count, steps[i] };
    return true;
}

static bool parse_filters(struct bytes b, struct sock_fprog programs[THREADS])
{
    uint64_t count;

    memset(programs, 0, THREADS * sizeof(*programs));
    if (!take(&b, &count, sizeof(count)) || count != THREADS)
        return false;
    for (unsigned i = 0; i < THREADS; i++)
        if (!take_filter(&b, programs))
            return false;
    return b.left == 0;
}

int seccomp_file_read(struct seccomp_threads *out, const char *path, struct error *e)
{
    autofd int fd = open(path, O_RDONLY | O_NOCTTY | O_CLOEXEC);
    static struct sock_fprog programs[THREADS];
    static char bytes[FILE_MAX_BYTES];
    ssize_t n;

    if (fd < 0)
        return fail_path(e, errno, path, "Filter file open error");
    n = whole_file_read(fd, bytes, sizeof(bytes));
    if (n < 0)
        return fail_path(e, (int)-n, path, "Filter file read error");
    if (!parse_filters((struct bytes){ bytes, (size_t)n }, programs))
        return fail(
            e, ERR_INVALID,
            "Filter deserialization failed: %s does not have the three filters vmm, api and "
            "vcpu as seccompiler-bin writes them",
            path);
    /* Firecracker has no thread that serves memory: it keeps the filter that is built in. */
    *out =
        (struct seccomp_threads){ &programs[THREAD_VMM], &programs[THREAD_VCPU], &seccomp_pager };
    return 0;
}
