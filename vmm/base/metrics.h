/*
 * Metrics: what the process counts, and the lines it writes about that.
 *
 * A counter is an atomic word next to what it counts: process-wide ones in the groups of `metrics`
 * below, those of a device or a vCPU in a struct of its own: metrics_add_source() announces it.
 * Any thread counts, signal handlers too, and nobody waits. Each list below makes a group's struct
 * and the rows by which it is written, so that a new counter is one word in a list.
 *
 * A line is one JSON object that names every member of every group, also of devices that this
 * version does not have: the parsers of Firecracker's clients want them. Counters are written as
 * the difference to the last line that was taken whole, so that a lost line loses no count.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/config.h"
#include "vmm/base/error.h"
#include "vmm/base/loop.h"

typedef _Atomic uint64_t metric;

/* Of latencies, how many there were below 16 us, 64 us, ... 4 times as much each, and of the rest.
 */
#define LATENCY_BUCKETS     10
#define LATENCY_BELOW_US(i) (UINT64_C(16) << (2 * (i)))

struct latency { /* microseconds */
    metric min_us, max_us, sum_us;
    metric buckets[LATENCY_BUCKETS]; /* for metrics_each() alone */
};

/* C: a counter, written as a difference. S: a value, written as it is. A: a latency, whose sum is a
 * counter. Each with what metrics_each() says about it; NULL: this version doesn't have what it
 * counts, so that it is in the lines as 0, and not shown. */
#define METRICS_API_SERVER(C, S, A)                                                                \
    S(process_startup_time_us, "Time from the jailer's start to an answering API.")                \
    S(process_startup_time_cpu_us, "CPU time used from the jailer's start to an answering API.")
#define METRICS_BALLOON(C, S, A)                                                                   \
    C(activate_fails, NULL)                                                                        \
    C(inflate_count, NULL)                                                                         \
    C(stats_updates_count, NULL)                                                                   \
    C(stats_update_fails, NULL)                                                                    \
    C(deflate_count, NULL)                                                                         \
    C(event_fails, NULL)                                                                           \
    C(free_page_report_count, NULL)                                                                \
    C(free_page_report_freed, NULL)                                                                \
    C(free_page_report_fails, NULL)                                                                \
    C(free_page_hint_count, NULL)                                                                  \
    C(free_page_hint_freed, NULL)                                                                  \
    C(free_page_hint_fails, NULL)
#define METRICS_BLOCK(C, S, A)                                                                     \
    C(activate_fails, "Times a driver could not start the drive.")                                 \
    C(cfg_fails, "Accesses of a driver beyond the configuration of the drive.")                    \
    C(no_avail_buffer, "Notifications that brought no request.")                                   \
    C(event_fails, "Failures of the host to tell of notifications or results.")                    \
    C(execute_fails, "Requests that failed.")                                                      \
    C(invalid_reqs_count, "Requests that are none, or of a kind that the drive does not have.")    \
    C(flush_count, "Flushes carried out.")                                                         \
    C(queue_event_count, "Notifications by the guest.")                                            \
    C(rate_limiter_event_count, "Times the rate limiter let a drive go on.")                       \
    C(update_count, "Changes of the drive by PATCH.")                                              \
    C(update_fails, "Changes of the drive by PATCH that failed.")                                  \
    C(read_bytes, "Bytes read.")                                                                   \
    C(write_bytes, "Bytes written.")                                                               \
    C(read_count, "Reads carried out.")                                                            \
    C(write_count, "Writes carried out.")                                                          \
    C(rate_limiter_throttled_events, "Times requests had to wait for the rate limiter.")           \
    C(io_engine_throttled_events, "Times requests had to wait for the Async engine.")              \
    C(remaining_reqs_count, "Requests that waited behind each one that was taken, added up.")      \
    A(read_agg, "Reads by the time they took in the VMM.")                                         \
    A(write_agg, "Writes by the time they took in the VMM.")
#define METRICS_DEPRECATED_API(C, S, A)                                                            \
    C(deprecated_http_api_calls, "API requests that used what will go away.")
#define METRICS_ENTROPY(C, S, A)                                                                   \
    C(activate_fails, NULL)                                                                        \
    C(entropy_event_fails, NULL)                                                                   \
    C(entropy_event_count, NULL)                                                                   \
    C(entropy_bytes, NULL)                                                                         \
    C(host_rng_fails, NULL)                                                                        \
    C(entropy_rate_limiter_throttled, NULL)                                                        \
    C(rate_limiter_event_count, NULL)
#define METRICS_GET_API_REQUESTS(C, S, A)                                                          \
    C(instance_info_count, "GET requests of /.")                                                   \
    C(machine_cfg_count, "GET requests of /machine-config.")                                       \
    C(mmds_count, "GET requests of /mmds.")                                                        \
    C(vmm_version_count, "GET requests of /version.")                                              \
    C(hotplug_memory_count, NULL)
#define METRICS_I8042(C, S, A)                                                                     \
    C(error_count, "Accesses to the PS/2 controller that failed.")                                 \
    C(missed_read_count, "Reads of the PS/2 controller that it has no answer to.")                 \
    C(missed_write_count, "Writes to the PS/2 controller that it does not take.")                  \
    C(read_count, "Reads of the PS/2 controller.")                                                 \
    C(reset_count, "Resets by the PS/2 controller.")                                               \
    C(write_count, "Writes to the PS/2 controller.")
#define METRICS_INTERRUPTS(C, S, A)                                                                \
    C(triggers, "Interrupts of virtio devices.")                                                   \
    C(config_updates, "Interrupts that told a driver of a new configuration.")
#define METRICS_LATENCIES_US(C, S, A)                                                              \
    S(full_create_snapshot, "Time of the last full snapshot, by the API.")                         \
    S(diff_create_snapshot, "Time of the last diff snapshot, by the API.")                         \
    S(load_snapshot, "Time of the last load of a snapshot, by the API.")                           \
    S(pause_vm, "Time of the last pause, by the API.")                                             \
    S(resume_vm, "Time of the last resume, by the API.")                                           \
    S(vmm_full_create_snapshot, "Time of the last full snapshot, in the VMM.")                     \
    S(vmm_diff_create_snapshot, "Time of the last diff snapshot, in the VMM.")                     \
    S(vmm_load_snapshot, "Time of the last load of a snapshot, in the VMM.")                       \
    S(vmm_pause_vm, "Time of the last pause, in the VMM.")                                         \
    S(vmm_resume_vm, "Time of the last resume, in the VMM.")
#define METRICS_LOGGER(C, S, A)                                                                    \
    C(missed_metrics_count, "Lines of metrics of which nothing was taken.")                        \
    C(metrics_fails, "Lines of metrics that were too long.")                                       \
    C(missed_log_count, "Lines of the log that were not taken whole.")                             \
    C(rate_limited_log_count, NULL)
#define METRICS_MEMORY_HOTPLUG(C, S, A)                                                            \
    C(activate_fails, NULL)                                                                        \
    C(queue_event_fails, NULL)                                                                     \
    C(queue_event_count, NULL)                                                                     \
    C(plug_count, NULL)                                                                            \
    C(plug_bytes, NULL)                                                                            \
    C(plug_fails, NULL)                                                                            \
    A(plug_agg, NULL)                                                                              \
    C(unplug_count, NULL)                                                                          \
    C(unplug_bytes, NULL)                                                                          \
    C(unplug_fails, NULL)                                                                          \
    C(unplug_discard_fails, NULL)                                                                  \
    A(unplug_agg, NULL)                                                                            \
    C(state_count, NULL)                                                                           \
    C(state_fails, NULL)                                                                           \
    A(state_agg, NULL)                                                                             \
    C(unplug_all_count, NULL)                                                                      \
    C(unplug_all_fails, NULL)                                                                      \
    A(unplug_all_agg, NULL)
#define METRICS_MMDS(C, S, A)                                                                      \
    C(rx_accepted, "Frames that the metadata service took.")                                       \
    C(rx_accepted_err, "Frames to the metadata service that are not well-formed.")                 \
    C(rx_accepted_unusual, "Frames that the metadata service took and has no use for.")            \
    C(rx_bad_eth, "Frames to the metadata service whose Ethernet header is bad.")                  \
    C(rx_invalid_token, "Metadata requests with a token that is not valid.")                       \
    C(rx_no_token, "Metadata requests without a token.")                                           \
    C(rx_count, "Frames to the metadata service.")                                                 \
    C(tx_bytes, "Bytes sent by the metadata service.")                                             \
    C(tx_count, "Times the metadata service had something to send.")                               \
    C(tx_errors, "Frames that the metadata service could not send.")                               \
    C(tx_frames, "Frames sent by the metadata service.")                                           \
    C(connections_created, "Connections to the metadata service.")                                 \
    C(connections_destroyed, "Connections to the metadata service that ended.")
#define METRICS_NET(C, S, A)                                                                       \
    C(activate_fails, "Times a driver could not start the interface.")                             \
    C(cfg_fails, "Accesses of a driver beyond the configuration of the interface.")                \
    C(no_rx_avail_buffer, "Frames that found no buffer of the guest.")                             \
    C(no_tx_avail_buffer, NULL)                                                                    \
    C(event_fails, "Failures of the host to tell of notifications or frames.")                     \
    C(rx_queue_event_count, "Notifications by the guest of buffers to receive into.")              \
    C(rx_event_rate_limiter_count, "Times the rate limiter let receiving go on.")                  \
    C(rx_rate_limiter_throttled, "Times frames to the guest had to wait for the rate limiter.")    \
    C(rx_tap_event_count, "Times the tap had frames.")                                             \
    C(rx_bytes_count, "Bytes received by the guest.")                                              \
    C(rx_packets_count, "Frames received by the guest.")                                           \
    C(rx_fails, "Frames that could not be given to the guest.")                                    \
    C(rx_count, "Times frames were given to the guest.")                                           \
    C(tap_read_fails, "Reads of the tap that failed.")                                             \
    C(tap_write_fails, "Writes to the tap that failed.")                                           \
    A(tap_write_agg, "Writes to the tap by the time they took.")                                   \
    C(tx_bytes_count, "Bytes sent by the guest.")                                                  \
    C(tx_malformed_frames, "Frames of the guest that are none.")                                   \
    C(tx_fails, "Frames of the guest that could not be sent.")                                     \
    C(tx_count, "Times frames were taken from the guest.")                                         \
    C(tx_packets_count, "Frames sent by the guest.")                                               \
    C(tx_queue_event_count, "Notifications by the guest of frames to send.")                       \
    C(tx_rate_limiter_event_count, "Times the rate limiter let sending go on.")                    \
    C(tx_rate_limiter_throttled, "Times frames of the guest had to wait for the rate limiter.")    \
    C(tx_spoofed_mac_count, "Frames of the guest with a source address that is not its own.")      \
    C(tx_remaining_reqs_count, NULL)
#define METRICS_REQUEST(C, name, verb, path)                                                       \
    C(name##_count, verb " requests of " path ".")                                                 \
    C(name##_fails, verb " requests of " path " that failed.")
#define METRICS_NO_REQUEST(C, name) C(name##_count, NULL) C(name##_fails, NULL)
#define METRICS_PATCH_API_REQUESTS(C, S, A)                                                        \
    METRICS_REQUEST(C, drive, "PATCH", "/drives")                                                  \
    METRICS_REQUEST(C, network, "PATCH", "/network-interfaces")                                    \
    METRICS_REQUEST(C, machine_cfg, "PATCH", "/machine-config")                                    \
    METRICS_REQUEST(C, mmds, "PATCH", "/mmds")                                                     \
    METRICS_NO_REQUEST(C, hotplug_memory)                                                          \
    METRICS_NO_REQUEST(C, pmem)
#define METRICS_PMEM(C, S, A)                                                                      \
    C(activate_fails, NULL)                                                                        \
    C(cfg_fails, NULL)                                                                             \
    C(event_fails, NULL)                                                                           \
    C(queue_event_count, NULL)                                                                     \
    C(rate_limiter_throttled_events, NULL)                                                         \
    C(rate_limiter_event_count, NULL)
#define METRICS_PUT_API_REQUESTS(C, S, A)                                                          \
    METRICS_REQUEST(C, actions, "PUT", "/actions")                                                 \
    METRICS_REQUEST(C, boot_source, "PUT", "/boot-source")                                         \
    METRICS_REQUEST(C, drive, "PUT", "/drives")                                                    \
    METRICS_REQUEST(C, logger, "PUT", "/logger")                                                   \
    METRICS_REQUEST(C, machine_cfg, "PUT", "/machine-config")                                      \
    METRICS_REQUEST(C, cpu_cfg, "PUT", "/cpu-config")                                              \
    METRICS_REQUEST(C, metrics, "PUT", "/metrics")                                                 \
    METRICS_REQUEST(C, network, "PUT", "/network-interfaces")                                      \
    METRICS_REQUEST(C, mmds, "PUT", "/mmds")                                                       \
    METRICS_REQUEST(C, vsock, "PUT", "/vsock")                                                     \
    METRICS_NO_REQUEST(C, pmem)                                                                    \
    METRICS_REQUEST(C, serial, "PUT", "/serial")                                                   \
    METRICS_NO_REQUEST(C, hotplug_memory)
#define METRICS_SECCOMP(C, S, A) S(num_faults, "1 after a system call that the filters forbid.")
#define METRICS_SIGNALS(C, S, A)                                                                   \
    S(sigbus, "1 after a SIGBUS.")                                                                 \
    S(sigsegv, "1 after a SIGSEGV.")                                                               \
    S(sigxfsz, "1 after a SIGXFSZ.")                                                               \
    S(sigxcpu, "1 after a SIGXCPU.")                                                               \
    C(sigpipe, "SIGPIPEs.") S(sighup, "1 after a SIGHUP.") S(sigill, "1 after a SIGILL.")
#define METRICS_UART(C, S, A)                                                                      \
    C(error_count, "Failures of the serial port.")                                                 \
    C(flush_count, "Flushes of the serial port's output.")                                         \
    C(missed_read_count, "Reads of the serial port that it has no answer to.")                     \
    C(missed_write_count, "Writes to the serial port that were lost.")                             \
    C(read_count, "Reads of the serial port.")                                                     \
    C(write_count, "Writes to the serial port.")                                                   \
    C(rate_limiter_dropped_bytes,                                                                  \
      "Bytes of the serial port's output that the rate limiter dropped.")
#define METRICS_VCPU(C, S, A)                                                                      \
    C(exit_io_in, "Exits of vCPUs to read a port.")                                                \
    C(exit_io_out, "Exits of vCPUs to write a port.")                                              \
    C(exit_mmio_read, "Exits of vCPUs to read device memory.")                                     \
    C(exit_mmio_write, "Exits of vCPUs to write device memory.")                                   \
    C(failures, "vCPUs that could not go on.")                                                     \
    C(kvmclock_ctrl_fails, "Times a guest could not be told that it stood still.")                 \
    A(exit_io_in_agg, "Reads of ports by the time they took in the VMM.")                          \
    A(exit_io_out_agg, "Writes of ports by the time they took in the VMM.")                        \
    A(exit_mmio_read_agg, "Reads of device memory by the time they took in the VMM.")              \
    A(exit_mmio_write_agg, "Writes of device memory by the time they took in the VMM.")
#define METRICS_VMM(C, S, A) S(panic_count, "1 after the VMM has found a fault of its own.")
#define METRICS_VSOCK(C, S, A)                                                                     \
    C(activate_fails, "Times a driver could not start the vsock device.")                          \
    C(cfg_fails, "Accesses of a driver beyond the configuration of the vsock device.")             \
    C(rx_queue_event_fails, "Failures of the host to tell of buffers to receive into.")            \
    C(tx_queue_event_fails, "Failures of the host to tell of packets to send.")                    \
    C(ev_queue_event_fails, "Failures of the host to tell of buffers for events.")                 \
    C(muxer_event_fails, "Failures of the socket that connections to the guest come by.")          \
    C(conn_event_fails, NULL)                                                                      \
    C(rx_queue_event_count, "Notifications by the guest of buffers to receive into.")              \
    C(tx_queue_event_count, "Notifications by the guest of packets to send.")                      \
    C(rx_bytes_count, "Bytes received by the guest.")                                              \
    C(tx_bytes_count, "Bytes sent by the guest.")                                                  \
    C(rx_packets_count, "Packets received by the guest.")                                          \
    C(tx_packets_count, "Packets sent by the guest.")                                              \
    C(conns_added, "Connections that began.")                                                      \
    C(conns_killed, "Connections that were cut off.")                                              \
    C(conns_removed, "Connections that ended.")                                                    \
    C(killq_resync, NULL)                                                                          \
    C(tx_flush_fails,                                                                              \
      "Failures to send on what the host's side of a connection did not take at once.")            \
    C(tx_write_fails, "Failures to write to the host's side of a connection.")                     \
    C(rx_read_fails, "Failures to read from the host's side of a connection.")

/* Every group, in the order of a line. */
#define METRICS_GROUPS(G)                                                                          \
    G(api_server, API_SERVER)                                                                      \
    G(balloon, BALLOON)                                                                            \
    G(block, BLOCK)                                                                                \
    G(deprecated_api, DEPRECATED_API)                                                              \
    G(entropy, ENTROPY)                                                                            \
    G(get_api_requests, GET_API_REQUESTS)                                                          \
    G(i8042, I8042)                                                                                \
    G(interrupts, INTERRUPTS)                                                                      \
    G(latencies_us, LATENCIES_US)                                                                  \
    G(logger, LOGGER)                                                                              \
    G(memory_hotplug, MEMORY_HOTPLUG)                                                              \
    G(mmds, MMDS)                                                                                  \
    G(net, NET)                                                                                    \
    G(patch_api_requests, PATCH_API_REQUESTS)                                                      \
    G(pmem, PMEM)                                                                                  \
    G(put_api_requests, PUT_API_REQUESTS)                                                          \
    G(seccomp, SECCOMP)                                                                            \
    G(signals, SIGNALS)                                                                            \
    G(uart, UART)                                                                                  \
    G(vcpu, VCPU)                                                                                  \
    G(vmm, VMM)                                                                                    \
    G(vsock, VSOCK)

#define METRICS_WORD(name, help)    metric name;
#define METRICS_LATENCY(name, help) struct latency name;
#define METRICS_STRUCT(name, LIST)                                                                 \
    struct name##_metrics {                                                                        \
        METRICS_##LIST(METRICS_WORD, METRICS_WORD, METRICS_LATENCY)                                \
    };
METRICS_GROUPS(METRICS_STRUCT)

#define METRICS_GROUP(name, LIST) struct name##_metrics name;
struct metrics {
    METRICS_GROUPS(METRICS_GROUP)
};

/* Of the process. Not a const table, as other globals are: signal handlers count too. */
extern struct metrics metrics;

#define METRICS_KIND(name, LIST) METRICS_OF_##LIST,
enum metrics_kind { METRICS_GROUPS(METRICS_KIND) METRICS_KINDS };

/* Any thread, async-signal-safe. */
static inline void metric_add(metric *m, uint64_t n)
{
    atomic_fetch_add_explicit(m, n, memory_order_relaxed);
}
static inline void metric_inc(metric *m)
{
    metric_add(m, 1);
}
static inline void metric_set(metric *m, uint64_t value)
{
    atomic_store_explicit(m, value, memory_order_relaxed);
}
static inline uint64_t metric_get(const metric *m)
{
    return atomic_load_explicit(m, memory_order_relaxed);
}

/* Accounts for something that began at monotonic_us() == start_us. A latency has one thread (or
 * one lock's holder) that records it. */
void latency_record(struct latency *l, uint64_t start_us);

/* Announces the counters (a struct of that kind, zeroed) of one of several devices or vCPUs: they
 * are added up in the kind's group. With an id they also have a group of their own, KIND_ID.
 * Borrows the counters until metrics_forget_sources(). Main thread. */
void metrics_add_source(enum metrics_kind kind, const char *id, const void *counters);
/* Forgets every announced struct: the machine they belong to is gone. */
void metrics_forget_sources(void);

/* Opens the file or FIFO for the lines, once in the process's life; it waits for no reader. */
must_check int metrics_open(const struct metrics_config *config, const char *instance_id,
                            struct error *e);

/* Writes a line, if there is a place for it: 0, or -errno where it is not there as a whole. One of
 * which nothing was taken is counted, and what it told is in the next one; of one that was taken in
 * part the rest comes before the next. Async-signal-safe. */
int metrics_write(void);
/* The same where no client hears of it: on_missed() of metrics_start() does. Main thread. */
void metrics_write_unasked(void);

/* The guest starts: a line now, and one every minute. From now on on_missed() hears of each that is
 * not there as a whole. -1: the host has no timer for those of the minutes. */
must_check int metrics_start(struct loop *loop, void (*on_missed)(int os_errno), struct error *e);
/* The minute stands still while the VM does. */
void metrics_pause(void);
void metrics_resume(void);

enum metric_type { METRIC_COUNTER, METRIC_VALUE, METRIC_LATENCY };

/* A value as metrics_each() shows it. */
struct metrics_sample {
    const char *group, *name, *help;
    const char *id; /* of a device; NULL: none */
    enum metric_type type;
    uint64_t value;          /* of a latency the sum */
    const uint64_t *buckets; /* of a latency: LATENCY_BUCKETS */
};

/* Shows every value since the process began; all of one name follow each other. A group whose
 * devices have ids is shown by device. Main thread. */
void metrics_each(void (*show)(void *context, const struct metrics_sample *s), void *context);
