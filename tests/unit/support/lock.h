/*
 * Whether a call takes a lock: another thread makes it while the test holds the lock, and then
 * either ends or waits for the lock in the kernel, which says where a thread waits.
 */
#pragma once

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

struct lock_call {
    void (*make)(void);
    atomic_int thread; /* 0 until it is known */
    atomic_bool has_ended;
};

static inline void *lock_make_call(void *arg)
{
    struct lock_call *call = arg;

    call->thread = (int)syscall(SYS_gettid);
    call->make();
    call->has_ended = true;
    return NULL;
}

static inline bool lock_is_waited_for(int thread, const void *lock)
{
    unsigned long number = 0, first = 0;
    char status[64];
    FILE *f;

    snprintf(status, sizeof(status), "/proc/self/task/%d/syscall", thread);
    f = fopen(status, "re");
    if (!f)
        return false;                             /* it has ended */
    (void)!fscanf(f, "%lu %lx", &number, &first); /* "running" is neither */
    fclose(f);
    return number == SYS_futex && first == (unsigned long)lock;
}

static inline bool waits_for(pthread_mutex_t *lock, void (*make)(void))
{
    struct lock_call call = { .make = make };
    pthread_t thread;
    bool has_waited = false;

    cr_assert_eq(pthread_mutex_lock(lock), 0);
    cr_assert_eq(pthread_create(&thread, NULL, lock_make_call, &call), 0);
    while (!has_waited && !call.has_ended) {
        sched_yield();
        has_waited = call.thread && lock_is_waited_for(call.thread, lock);
    }
    cr_assert_eq(pthread_mutex_unlock(lock), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    return has_waited;
}
