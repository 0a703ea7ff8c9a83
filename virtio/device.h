/*
 * What a device must provide to the transport, and what it may ask of it.
 *
 * The transport (virtio/mmio.h) owns registers, feature and status rules, queue set-up and
 * interrupts; a device owns requests. The transport calls every function below under one mutex, so
 * a device needs no lock of its own. A device reaches guest memory only through its queues, which
 * exist from activate to reset.
 */
#pragma once

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

#include "virtio/queue.h"
#include "vmm/base/metrics.h"

#define VIRTIO_QUEUES_MAX 3u

struct virtio_device;

struct virtio_ops { /* const, static, one per device type and way to serve it */
    const char *name;
    uint32_t id; /* section 5 */
    unsigned queue_count;
    /* The driver is ready (DRIVER_OK), or was when its VM was saved. A queue whose state.ready is
     * false does not exist. NULL: a device that waits to be notified. */
    void (*activate)(struct virtio_device *d);
    /* A turn: works on a queue, whatever the reason. Does a bounded amount of work; true: there is
     * more, call again after others had their turn. Event-loop thread. */
    bool (*serve)(struct virtio_device *d, unsigned queue);
    /* A turn on the thread of the vCPU that notifies, so that it must wait for nothing: does what
     * is little and can be done like that. True: the event loop has to go on. NULL: notifications
     * go to the event loop. */
    bool (*try_serve)(struct virtio_device *d, unsigned queue);
    /* Waits for what is under way, which is bounded whatever the guest asked for, and pushes it:
     * when it returns, no request is in flight and none was lost. What is not done is in the ring
     * again. At a pause and at the end; no turn comes until the VM goes on. NULL: a device that has
     * nothing in flight between its turns. */
    void (*drain)(struct virtio_device *d);
    /* The guest resets the device: when it returns, no request is in flight, and what was begun is
     * forgotten. On any thread. */
    void (*reset)(struct virtio_device *d);
};

struct virtio_device {
    const struct virtio_ops *ops;
    uint64_t offered;   /* feature bits; fixed before the guest runs */
    const void *config; /* configuration space, as the guest sees it; NULL: it has none */
    size_t config_bytes;
    /* The device's metrics that the transport counts; NULL: not counted. Of notifications, those of
     * the guest to an active device, by queue. One that comes while a turn is due anyway may go
     * uncounted. */
    metric *activate_fails, *cfg_fails, *notifications[VIRTIO_QUEUES_MAX];
    struct virtq queues[VIRTIO_QUEUES_MAX];
    struct virtio_mmio *transport; /* set by virtio_mmio_init */
};

/* The feature bits that the driver took; none before FEATURES_OK. */
uint64_t virtio_acked(const struct virtio_device *d);

/* Interrupts the guest if it wants that for what was pushed to the queue since the last call. Under
 * the lock, as all that follows, unless it says otherwise. */
void virtio_signal_used(struct virtio_device *d, unsigned queue);

/* The same for several queues, one bit each, in one interrupt. */
void virtio_signal_queues(struct virtio_device *d, unsigned queues);

/* Gives the device a turn for a queue, if it is active: for what it waits for beside the guest's
 * notifications, such as a completion or a timer. Without the lock; event-loop thread. */
void virtio_serve(struct virtio_device *d, unsigned queue);

/* The same, later: another turn is due. Event-loop thread. */
void virtio_ask_turn(struct virtio_device *d, unsigned queue);

/* The mutex under which the transport calls the device, for what comes from elsewhere (the API). */
void virtio_lock(struct virtio_device *d);
void virtio_unlock(struct virtio_device *d);

/* Tells the guest that the configuration space changed (section 2.5). The vCPUs stand still: a
 * driver reads the configuration and its generation without an exit, so nothing else keeps it from
 * half of a change. */
void virtio_config_changed(struct virtio_device *d);

/* The guest broke the rules: nothing is processed any more until it resets the device (section
 * 2.1.2, DEVICE_NEEDS_RESET). Logs `why`, at most once a second a device. */
void virtio_needs_reset(struct virtio_device *d, const char *why);
