/*
 * A VM for clients that send anything, in a directory of its own. No path of an input leads out of
 * it: each slash in it becomes an underscore, also where JSON spells it \u002f.
 */
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fuzz/support/input.h"
#include "vmm/base/log.h"
#include "vmm/machine/vm.h"

struct scratch {
    struct loop loop;
    struct vm *vm;
    int home; /* where the fuzzer was started */
};

static char scratch_path[] = "/tmp/mayfly-fuzz-XXXXXX";

static inline void make_file(const char *name, const void *bytes, size_t n)
{
    int fd = open(name, O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);

    MUST(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    close(fd);
}

static inline void empty_scratch(void)
{
    DIR *d = opendir(scratch_path);
    struct dirent *entry;

    MUST(d);
    while ((entry = readdir(d)) != NULL)
        unlinkat(dirfd(d), entry->d_name, 0);
    closedir(d);
}

static inline void scratch_remove(void)
{
    rmdir(scratch_path);
}

/* Goes into the directory, which holds a disk and a kernel that is none: no VM ever starts. */
static inline void scratch_enter(struct scratch *s)
{
    static const struct vm_options options = { .id = "fuzz", .metadata_max_bytes = 200 };
    static const char zeroes[4096];
    static bool exists;
    struct error e;

    if (!exists)
        MUST(mkdtemp(scratch_path) && atexit(scratch_remove) == 0);
    exists = true;
    s->home = open(".", O_PATH | O_CLOEXEC);
    MUST(s->home >= 0 && chdir(scratch_path) == 0);
    make_file("disk", zeroes, sizeof(zeroes));
    make_file("kernel", zeroes, 64);
    MUST(log_open("/dev/null", &e) == 0 && loop_init(&s->loop, &e) == 0);
    log_set_options((struct log_options){ .level = LOG_DEBUG });
    s->vm = vm_new(&s->loop, &options);
}

static inline void scratch_leave(struct scratch *s)
{
    MUST(vm_state(s->vm) == VM_NOT_STARTED);
    vm_free(s->vm);
    loop_fini(&s->loop);
    empty_scratch();
    MUST(fchdir(s->home) == 0);
    close(s->home);
}

static inline void confine(char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '/')
            text[i] = '_';
        if (n - i >= 6 && strncasecmp(text + i, "\\u002f", 6) == 0)
            text[i + 5] = 'e';
    }
}
