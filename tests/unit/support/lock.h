/*
 * Whether a call takes a lock: another thread makes it while the test holds the lock, and then
 * either ends or waits for the lock in the kernel, which says where a thread waits.
 */
#pragma once

#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline bool lock_is_waited_for_by(int tasks, const char *thread, const void *lock)
{
    unsigned long number, first;
    char name[300], text[256];
    ssize_t n;
    int fd;

    snprintf(name, sizeof(name), "%s/syscall", thread);
    fd = openat(tasks, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false; /* it has ended */
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0'; /* "running" is no number */
    return sscanf(text, "%lu %lx", &number, &first) == 2 && number == SYS_futex &&
           first == (unsigned long)lock;
}

/* Some thread of this process does, now. */
static inline bool lock_is_waited_for(const pthread_mutex_t *lock)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *thread;
    bool found = false;

    cr_assert_not_null(tasks);
    while (!found && (thread = readdir(tasks)))
        found = lock_is_waited_for_by(dirfd(tasks), thread->d_name, lock);
    closedir(tasks);
    sched_yield();
    return found;
}

struct lock_call {
    void (*make)(void);
    atomic_bool has_ended;
};

static inline void *lock_make_call(void *arg)
{
    struct lock_call *call = arg;

    call->make();
    call->has_ended = true;
    return NULL;
}

static inline bool waits_for(pthread_mutex_t *lock, void (*make)(void))
{
    struct lock_call call = { .make = make };
    pthread_t thread;
    bool has_waited = false;

    cr_assert_eq(pthread_mutex_lock(lock), 0);
    cr_assert_eq(pthread_create(&thread, NULL, lock_make_call, &call), 0);
    while (!has_waited && !call.has_ended)
        has_waited = lock_is_waited_for(lock);
    cr_assert_eq(pthread_mutex_unlock(lock), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    return has_waited;
}
