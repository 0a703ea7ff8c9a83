#include "vmm/base/thread.h"

#include <sys/prctl.h>

#define STACK_BYTES (64u << 10)

int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *arg)
{
    char own[THREAD_NAME_BYTES];
    pthread_attr_t attr;
    int ret;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    prctl(PR_GET_NAME, own);
    prctl(PR_SET_NAME, name);
    ret = pthread_create(thread, &attr, run, arg);
    prctl(PR_SET_NAME, own);
    pthread_attr_destroy(&attr);
    return ret;
}
