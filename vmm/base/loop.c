#include "vmm/base/loop.h"

#include <errno.h>
#include <sys/timerfd.h>
#include <unistd.h>

int loop_init(struct loop *l, struct error *e)
{
    *l = (struct loop){ .epoll_fd = epoll_create1(EPOLL_CLOEXEC) };
    if (l->epoll_fd < 0)
        return fail_os(e, errno, "event loop");
    return 0;
}

void loop_fini(struct loop *l)
{
    close_fdp(&l->epoll_fd);
    l->epoll_fd = -1;
}

int loop_add(struct loop *l, struct loop_source *src)
{
    struct epoll_event ev = { .events = src->want, .data.ptr = src };

    return epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, src->fd, &ev) < 0 ? -errno : 0;
}

void loop_want(struct loop *l, struct loop_source *src, uint32_t want)
{
    struct epoll_event ev = { .events = want, .data.ptr = src };

    src->want = want;
    BUG_ON(epoll_ctl(l->epoll_fd, EPOLL_CTL_MOD, src->fd, &ev) < 0);
}

void loop_remove(struct loop *l, struct loop_source *src)
{
    if (!src->on_ready)
        return;
    epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, src->fd, NULL);
    for (int i = l->batch_next; i < l->batch_count; i++)
        if (l->batch[i].data.ptr == src)
            l->batch[i].data.ptr = NULL;
}

int loop_add_timer(struct loop *l, struct loop_source *src, loop_fn *on_ready)
{
    int ret;

    *src = (struct loop_source){
        .fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
        .want = EPOLLIN,
        .on_ready = on_ready,
    };
    ret = src->fd < 0 ? -errno : loop_add(l, src);
    if (ret < 0)
        loop_remove_timer(l, src);
    return ret;
}

void loop_remove_timer(struct loop *l, struct loop_source *src)
{
    if (!src->on_ready)
        return;
    loop_remove(l, src);
    close_fdp(&src->fd);
    *src = (struct loop_source){ .fd = -1 };
}

void loop_set_timer(const struct loop_source *src, int flags, const struct itimerspec *when,
                    struct itimerspec *old)
{
    BUG_ON(timerfd_settime(src->fd, flags, when, old) < 0);
}

bool loop_turn(struct loop *l, int timeout_ms)
{
    l->batch_next = 0;
    l->batch_count = epoll_wait(l->epoll_fd, l->batch, LOOP_BATCH, timeout_ms);
    BUG_ON(l->batch_count < 0 && errno != EINTR);
    while (l->batch_next < l->batch_count && !l->stopping) {
        struct epoll_event *ev = &l->batch[l->batch_next++];
        struct loop_source *src = ev->data.ptr;

        if (src)
            src->on_ready(src, ev->events);
    }
    return l->batch_count > 0;
}

int loop_run(struct loop *l)
{
    while (!l->stopping)
        loop_turn(l, -1);
    return l->exit_code;
}

void loop_stop(struct loop *l, int exit_code)
{
    if (l->stopping)
        return;
    l->stopping = 1;
    l->exit_code = exit_code;
}

void loop_signal(int fd)
{
    const uint64_t one = 1;

    (void)!write(fd, &one, sizeof(one));
}

uint64_t loop_drain(int fd)
{
    uint64_t value = 0;

    if (read(fd, &value, sizeof(value)) != sizeof(value))
        return 0;
    return value;
}
