#include "virtio/mmio.h"

#include <errno.h>
#include <linux/virtio_mmio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "vmm/base/log.h"
#include "vmm/base/metrics.h"
#include "vmm/base/probe.h"

#define MAGIC   0x74726976u /* "virt" */
#define VERSION 2u

#define STATUS_ACKNOWLEDGE VIRTIO_CONFIG_S_ACKNOWLEDGE
#define STATUS_DRIVER      VIRTIO_CONFIG_S_DRIVER
#define STATUS_FEATURES_OK VIRTIO_CONFIG_S_FEATURES_OK
#define STATUS_DRIVER_OK   VIRTIO_CONFIG_S_DRIVER_OK
#define STATUS_NEEDS_RESET VIRTIO_CONFIG_S_NEEDS_RESET
#define STATUS_FAILED      VIRTIO_CONFIG_S_FAILED

#define CONFIG_SPACE VIRTIO_MMIO_CONFIG

#define NOTIFIER_EVENTS (EPOLLIN | EPOLLET)

static uint32_t *word(struct virtio_mmio *t, unsigned offset)
{
    return &t->page[offset / sizeof(*t->page)];
}

static void show_word(struct virtio_mmio *t, unsigned offset, uint32_t value)
{
    __atomic_store_n(word(t, offset), value, __ATOMIC_RELEASE);
}

static void raise_interrupt(struct virtio_mmio *t, unsigned bit)
{
    __atomic_fetch_or(word(t, VIRTIO_MMIO_INTERRUPT_STATUS), bit, __ATOMIC_SEQ_CST);
    metric_inc(&metrics.interrupts.triggers);
    t->pulse(&t->line);
}

static void count_if(metric *m)
{
    if (m)
        metric_inc(m);
}

/* The queue that queue_sel names, or NULL. */
static struct virtq *selected(struct virtio_mmio *t)
{
    if (t->registers.queue_sel >= t->device->ops->queue_count)
        return NULL;
    return &t->device->queues[t->registers.queue_sel];
}

/* Registers that change, but for the interrupt status. */
static void show_registers(struct virtio_mmio *t)
{
    const struct virtq *q = selected(t);
    uint32_t sel = t->registers.device_features_sel;

    show_word(t, VIRTIO_MMIO_DEVICE_FEATURES,
              sel > 1 ? 0 : (uint32_t)(t->device->offered >> 32 * sel));
    show_word(t, VIRTIO_MMIO_QUEUE_NUM_MAX, q ? VIRTQ_SIZE_MAX : 0);
    show_word(t, VIRTIO_MMIO_QUEUE_READY, q && q->state.ready);
    show_word(t, VIRTIO_MMIO_STATUS, t->registers.status);
    show_word(t, VIRTIO_MMIO_CONFIG_GENERATION, t->registers.config_generation);
}

/* Before the generation that tells of it: see virtio_config_changed(). */
static void show_config(struct virtio_mmio *t)
{
    if (t->device->config)
        memcpy(word(t, CONFIG_SPACE), t->device->config, t->device->config_bytes);
}

static void show_constants(struct virtio_mmio *t)
{
    show_word(t, VIRTIO_MMIO_MAGIC_VALUE, MAGIC);
    show_word(t, VIRTIO_MMIO_VERSION, VERSION);
    show_word(t, VIRTIO_MMIO_DEVICE_ID, t->device->ops->id);
    /* All ones: there is no such shared memory region. */
    show_word(t, VIRTIO_MMIO_SHM_LEN_LOW, UINT32_MAX);
    show_word(t, VIRTIO_MMIO_SHM_LEN_HIGH, UINT32_MAX);
    show_word(t, VIRTIO_MMIO_SHM_BASE_LOW, UINT32_MAX);
    show_word(t, VIRTIO_MMIO_SHM_BASE_HIGH, UINT32_MAX);
}

void virtio_signal_used(struct virtio_device *d, unsigned queue)
{
    if (virtq_wants_interrupt(&d->queues[queue]))
        raise_interrupt(d->transport, VIRTIO_MMIO_INT_VRING);
}

void virtio_signal_queues(struct virtio_device *d, unsigned queues)
{
    bool is_wanted = false;

    for (; queues; queues &= queues - 1)
        if (virtq_wants_interrupt(&d->queues[__builtin_ctz(queues)]))
            is_wanted = true;
    if (is_wanted)
        raise_interrupt(d->transport, VIRTIO_MMIO_INT_VRING);
}

uint64_t virtio_acked(const struct virtio_device *d)
{
    const struct virtio_mmio_registers *r = &d->transport->registers;

    return r->status & STATUS_FEATURES_OK ? r->driver_features : 0;
}

/* Whoever waits comes before a vCPU that would try again and again: a mutex is not fair. */
static void mmio_lock(struct virtio_mmio *t)
{
    __atomic_fetch_add(&t->waiting, 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&t->lock);
    __atomic_fetch_sub(&t->waiting, 1, __ATOMIC_RELAXED);
}

void virtio_lock(struct virtio_device *d)
{
    mmio_lock(d->transport);
}

void virtio_unlock(struct virtio_device *d)
{
    pthread_mutex_unlock(&d->transport->lock);
}

/* A driver that is not there yet reads the new configuration when it comes. */
void virtio_config_changed(struct virtio_device *d)
{
    struct virtio_mmio *t = d->transport;

    show_config(t);
    t->registers.config_generation++;
    show_registers(t);
    metric_inc(&metrics.interrupts.config_updates);
    if (t->registers.status & STATUS_DRIVER_OK)
        raise_interrupt(t, VIRTIO_MMIO_INT_CONFIG);
}

void virtio_needs_reset(struct virtio_device *d, const char *why)
{
    struct virtio_mmio *t = d->transport;

    t->registers.status |= STATUS_NEEDS_RESET;
    show_registers(t);
    raise_interrupt(t, VIRTIO_MMIO_INT_CONFIG);
    log_limited(&t->complaints, LOG_WARN, "virtio %s at 0x%llx stops until the guest resets it: %s",
                d->ops->name, (unsigned long long)t->bus.base, why);
}

static bool is_active(const struct virtio_mmio *t)
{
    return t->registers.is_activated && !(t->registers.status & STATUS_NEEDS_RESET);
}

static void reset_device(struct virtio_mmio *t)
{
    struct virtio_device *d = t->device;

    if (t->registers.is_activated)
        d->ops->reset(d);
    for (unsigned i = 0; i < d->ops->queue_count; i++)
        virtq_stop(&d->queues[i]);
    t->registers =
        (struct virtio_mmio_registers){ .config_generation = t->registers.config_generation };
    show_word(t, VIRTIO_MMIO_INTERRUPT_STATUS, 0);
}

/* False: a queue's size or addresses are invalid. */
static bool start_queues(struct virtio_mmio *t)
{
    struct virtio_device *d = t->device;

    for (unsigned i = 0; i < d->ops->queue_count; i++) {
        struct virtq *q = &d->queues[i];

        if (q->state.ready && virtq_start(q, t->mem, virtio_acked(d)) < 0)
            return false;
    }
    return true;
}

static void activate_device(struct virtio_mmio *t)
{
    struct virtio_device *d = t->device;

    if (!start_queues(t)) {
        count_if(d->activate_fails);
        virtio_needs_reset(d, "a queue's size or addresses are invalid");
        return;
    }
    t->registers.is_activated = true;
    if (d->ops->activate)
        d->ops->activate(d);
}

/* The driver may take what was offered, no more, and must take VERSION_1 (section 6.1). */
static bool is_acceptable(const struct virtio_mmio *t, uint64_t wanted)
{
    return !(wanted & ~t->device->offered) && wanted & UINT64_C(1) << VIRTIO_F_VERSION_1;
}

/* The steps of a driver (section 3.1.1), each of which adds one bit to those before it. */
static const uint32_t steps[] = {
    0,
    STATUS_ACKNOWLEDGE,
    STATUS_ACKNOWLEDGE | STATUS_DRIVER,
    STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK,
    STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK,
};
#define STEPS (sizeof(steps) / sizeof(*steps))

/* STEPS for a status that is none. */
static unsigned step_of(uint32_t status)
{
    unsigned i = 0;

    while (i < STEPS && steps[i] != status)
        i++;
    return i;
}

/* Anything but the next step is ignored, so that a driver that skips one finds its bit unset. */
static void write_status(struct virtio_mmio *t, uint32_t value)
{
    const unsigned step = step_of(value);

    if (value == 0) {
        reset_device(t);
    } else if (value & STATUS_FAILED) {
        t->registers.status |= STATUS_FAILED;
    } else if (step < STEPS && t->registers.status == steps[step - 1]) {
        if (value & STATUS_FEATURES_OK && !is_acceptable(t, t->registers.driver_features))
            return;
        t->registers.status = value;
        if (value & STATUS_DRIVER_OK)
            activate_device(t);
    }
}

static void write_driver_features(struct virtio_mmio *t, uint32_t value)
{
    uint32_t sel = t->registers.driver_features_sel;
    uint64_t *features = &t->registers.driver_features;

    if ((t->registers.status & ~STATUS_ACKNOWLEDGE) != STATUS_DRIVER || sel > 1)
        return;
    *features &= ~((uint64_t)UINT32_MAX << 32 * sel);
    *features |= (uint64_t)value << 32 * sel;
}

static void set_half(gpa_t *address, bool is_high, uint32_t value)
{
    if (is_high)
        address->v = (address->v & UINT32_MAX) | (uint64_t)value << 32;
    else
        address->v = (address->v & ~(uint64_t)UINT32_MAX) | value;
}

/* Queues are set up between FEATURES_OK and DRIVER_OK (section 3.1.1, steps 7 and 8). */
static void write_queue_register(struct virtio_mmio *t, uint64_t offset, uint32_t value)
{
    struct virtq *q = selected(t);

    if (!q || (t->registers.status & (STATUS_FEATURES_OK | STATUS_DRIVER_OK)) != STATUS_FEATURES_OK)
        return;
    switch (offset) {
    case VIRTIO_MMIO_QUEUE_NUM: q->state.size = value > UINT16_MAX ? 0 : (uint16_t)value; break;
    case VIRTIO_MMIO_QUEUE_READY: q->state.ready = value & 1; break;
    case VIRTIO_MMIO_QUEUE_DESC_LOW: set_half(&q->state.desc, false, value); break;
    case VIRTIO_MMIO_QUEUE_DESC_HIGH: set_half(&q->state.desc, true, value); break;
    case VIRTIO_MMIO_QUEUE_AVAIL_LOW: set_half(&q->state.avail, false, value); break;
    case VIRTIO_MMIO_QUEUE_AVAIL_HIGH: set_half(&q->state.avail, true, value); break;
    case VIRTIO_MMIO_QUEUE_USED_LOW: set_half(&q->state.used, false, value); break;
    case VIRTIO_MMIO_QUEUE_USED_HIGH: set_half(&q->state.used, true, value); break;
    default: break;
    }
}

static void mmio_write_register(struct virtio_mmio *t, uint64_t offset, uint32_t value)
{
    switch (offset) {
    case VIRTIO_MMIO_DEVICE_FEATURES_SEL: t->registers.device_features_sel = value; break;
    case VIRTIO_MMIO_DRIVER_FEATURES_SEL: t->registers.driver_features_sel = value; break;
    case VIRTIO_MMIO_DRIVER_FEATURES: write_driver_features(t, value); break;
    case VIRTIO_MMIO_QUEUE_SEL: t->registers.queue_sel = value; break;
    case VIRTIO_MMIO_STATUS: write_status(t, value); break;
    default: write_queue_register(t, offset, value);
    }
}

/* The guest's, where they don't go to the event loop by themselves. A vCPU never waits: whoever has
 * the lock may be at a disk. What the loop has to do it also counts. */
static void on_notification(struct virtio_mmio *t, uint32_t queue)
{
    struct virtio_device *d = t->device;
    bool more = true;

    if (!d->ops->try_serve || queue >= d->ops->queue_count)
        return;
    PROBE3(queue_kick, t->bus.base, queue, 0);
    if (__atomic_load_n(&t->waiting, __ATOMIC_RELAXED) == 0 &&
        pthread_mutex_trylock(&t->lock) == 0) {
        bool is_served = is_active(t) && d->queues[queue].mem && !t->is_paused;

        more = is_served && d->ops->try_serve(d, queue);
        if (is_served && !more)
            count_if(d->notifications[queue]);
        pthread_mutex_unlock(&t->lock);
    }
    if (more)
        loop_signal(t->notifiers[queue].source.fd);
}

/* For a host that can't map the page into the guest. */
static void mmio_read(struct bus_device *b, uint64_t offset, uint8_t *data, unsigned bytes)
{
    struct virtio_mmio *t = owner_of(b, struct virtio_mmio, bus);

    if (offset < CONFIG_SPACE && bytes != sizeof(uint32_t))
        return; /* registers are 32 bits wide (section 4.2.2.2) */
    memcpy(data, (const uint8_t *)t->page + offset, bytes); /* the bus keeps within the device */
}

static void mmio_write(struct bus_device *b, uint64_t offset, const uint8_t *data, unsigned bytes)
{
    struct virtio_mmio *t = owner_of(b, struct virtio_mmio, bus);
    uint32_t value;

    if (offset >= CONFIG_SPACE) { /* no device of ours has a writable field there */
        count_if(t->device->cfg_fails);
        return;
    }
    if (bytes != sizeof(value))
        return;
    memcpy(&value, data, sizeof(value));
    if (offset == VIRTIO_MMIO_INTERRUPT_ACK) {
        __atomic_fetch_and(word(t, VIRTIO_MMIO_INTERRUPT_STATUS), ~value, __ATOMIC_SEQ_CST);
        return;
    }
    if (offset == VIRTIO_MMIO_QUEUE_NOTIFY) {
        on_notification(t, value);
        return;
    }
    mmio_lock(t);
    mmio_write_register(t, offset, value);
    show_registers(t);
    pthread_mutex_unlock(&t->lock);
}

static const struct bus_ops mmio_ops = { .read = mmio_read, .write = mmio_write };

/* Another turn is due. */
static void notify_oneself(struct virtio_notifier *n)
{
    n->is_own = true;
    loop_signal(n->source.fd);
}

void virtio_ask_turn(struct virtio_device *d, unsigned queue)
{
    notify_oneself(&d->transport->notifiers[queue]);
}

/* A turn for what `reason` counts; NULL: nothing does. */
static void give_turn(struct virtio_device *d, unsigned queue, metric *reason)
{
    struct virtio_mmio *t = d->transport;
    bool more = false;

    mmio_lock(t);
    if (is_active(t) && d->queues[queue].mem) {
        count_if(reason);
        more = !t->is_paused && d->ops->serve(d, queue);
    }
    pthread_mutex_unlock(&t->lock);
    if (more)
        notify_oneself(&t->notifiers[queue]);
}

void virtio_serve(struct virtio_device *d, unsigned queue)
{
    give_turn(d, queue, NULL);
}

/* The source is edge-triggered: each write of the eventfd wakes the loop once, and nobody has to
 * spend a system call to read it. */
static void on_notifier(struct loop_source *src, uint32_t ready)
{
    struct virtio_notifier *n = owner_of(src, struct virtio_notifier, source);
    struct virtio_device *d = n->transport->device;
    metric *reason = n->is_own ? NULL : d->notifications[n->queue];

    (void)ready;
    PROBE3(queue_kick, n->transport->bus.base, n->queue, n->is_own);
    n->is_own = false;
    give_turn(d, n->queue, reason);
}

int virtio_mmio_init(struct virtio_mmio *t, struct virtio_device *d, gpa_t base, void *page,
                     const struct guest_mem *m, struct loop *loop, struct error *e)
{
    *t = (struct virtio_mmio){
        .bus = { .ops = &mmio_ops, .base = base.v, .bytes = LAYOUT_VIRTIO_STEP },
        .device = d,
        .page = page,
        .mem = m,
        .loop = loop,
        .lock = PTHREAD_MUTEX_INITIALIZER,
    };
    d->transport = t;
    show_constants(t);
    show_config(t);
    show_registers(t);
    for (unsigned i = 0; i < d->ops->queue_count; i++) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        int ret;

        if (fd < 0)
            return fail_os(e, errno, "eventfd");
        t->notifiers[i] = (struct virtio_notifier){ { fd, NOTIFIER_EVENTS, on_notifier }, t, i, 0 };
        ret = loop_add(loop, &t->notifiers[i].source);
        if (ret)
            return fail_os(e, -ret, "event loop");
    }
    return 0;
}

int virtio_mmio_connect(struct virtio_mmio *t, const struct kvm *k, uint32_t gsi, struct error *e)
{
    const gpa_t notify = gpa(t->bus.base + VIRTIO_MMIO_QUEUE_NOTIFY);

    t->line = (struct kvm_line){ k->vm_fd, gsi };
    t->pulse = kvm_pulse;
    if (t->device->ops->try_serve)
        return 0;
    for (unsigned i = 0; i < t->device->ops->queue_count; i++)
        if (kvm_add_ioeventfd(k, t->notifiers[i].source.fd, notify, i, e) < 0)
            return -1;
    return 0;
}

void virtio_mmio_fini(struct virtio_mmio *t)
{
    if (!t->device)
        return;
    for (unsigned i = 0; i < t->device->ops->queue_count; i++) {
        struct loop_source *src = &t->notifiers[i].source;

        if (!src->on_ready)
            continue;
        loop_remove(t->loop, src);
        close_fdp(&src->fd);
    }
    *t = (struct virtio_mmio){ 0 };
}

void virtio_mmio_pause(struct virtio_mmio *t)
{
    mmio_lock(t);
    t->is_paused = true;
    /* Also where it needs a reset: what was begun is still under way. */
    if (t->registers.is_activated && t->device->ops->drain)
        t->device->ops->drain(t->device);
    pthread_mutex_unlock(&t->lock);
}

void virtio_mmio_resume(struct virtio_mmio *t)
{
    mmio_lock(t);
    t->is_paused = false;
    pthread_mutex_unlock(&t->lock);
    for (unsigned i = 0; i < t->device->ops->queue_count; i++)
        notify_oneself(&t->notifiers[i]);
}

void virtio_mmio_get_state(const struct virtio_mmio *t, struct virtio_mmio_state *s)
{
    BUG_ON(!t->is_paused);
    memset(s, 0, sizeof(*s)); /* the gaps between members, too */
    s->registers = t->registers;
    s->interrupt_status = __atomic_load_n(&t->page[VIRTIO_MMIO_INTERRUPT_STATUS / sizeof(*t->page)],
                                          __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < t->device->ops->queue_count; i++)
        s->queues[i] = t->device->queues[i].state;
}

/* What write_status() and the device can lead to. Queues that are used are judged when they are
 * started, others may be anything. */
static bool is_possible(const struct virtio_mmio *t, const struct virtio_mmio_state *s)
{
    const struct virtio_mmio_registers *r = &s->registers;
    const bool is_broken = r->status & STATUS_NEEDS_RESET;
    const bool has_features = r->status & STATUS_FEATURES_OK;

    return step_of(r->status & ~(STATUS_FAILED | STATUS_NEEDS_RESET)) < STEPS &&
           (!has_features || is_acceptable(t, r->driver_features)) &&
           (r->status & STATUS_DRIVER_OK ? r->is_activated || is_broken : !r->is_activated) &&
           !(s->interrupt_status & ~(VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG));
}

int virtio_mmio_set_state(struct virtio_mmio *t, const struct virtio_mmio_state *s)
{
    t->is_paused = true;
    if (!is_possible(t, s))
        return -EINVAL;
    t->registers = s->registers;
    for (unsigned i = 0; i < t->device->ops->queue_count; i++)
        t->device->queues[i].state = s->queues[i];
    show_word(t, VIRTIO_MMIO_INTERRUPT_STATUS, s->interrupt_status);
    if (t->registers.is_activated && !start_queues(t))
        return -EINVAL;
    if (t->registers.is_activated && t->device->ops->activate)
        t->device->ops->activate(t->device);
    show_registers(t);
    return 0;
}
