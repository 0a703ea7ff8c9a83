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

struct latency { /* microseconds */
    metric min_us, max_us, sum_us;
};

/* C: a counter, written as a difference. S: a value, written as it is. A: a latency, whose sum is a
 * counter. */
#define METRICS_API_SERVER(C, S, A) S(process_startup_time_us) S(process_startup_time_cpu_us)
#define METRICS_BALLOON(C, S, A)                                                                   \
    C(activate_fails)                                                                              \
    C(inflate_count)                                                                               \
    C(stats_updates_count)                                                                         \
    C(stats_update_fails)                                                                          \
    C(deflate_count)                                                                               \
    C(event_fails)                                                                                 \
    C(free_page_report_count)                                                                      \
    C(free_page_report_freed)                                                                      \
    C(free_page_report_fails)                                                                      \
    C(free_page_hint_count)                                                                        \
    C(free_page_hint_freed)                                                                        \
    C(free_page_hint_fails)
#define METRICS_BLOCK(C, S, A)                                                                     \
    C(activate_fails)                                                                              \
    C(cfg_fails)                                                                                   \
    C(no_avail_buffer)                                                                             \
    C(event_fails)                                                                                 \
    C(execute_fails)                                                                               \
    C(invalid_reqs_count)                                                                          \
    C(flush_count)                                                                                 \
    C(queue_event_count)                                                                           \
    C(rate_limiter_event_count)                                                                    \
    C(update_count)                                                                                \
    C(update_fails)                                                                                \
    C(read_bytes)                                                                                  \
    C(write_bytes)                                                                                 \
    C(read_count)                                                                                  \
    C(write_count)                                                                                 \
    C(rate_limiter_throttled_events)                                                               \
    C(io_engine_throttled_events)                                                                  \
    C(remaining_reqs_count)                                                                        \
    A(read_agg)                                                                                    \
    A(write_agg)
#define METRICS_DEPRECATED_API(C, S, A) C(deprecated_http_api_calls)
#define METRICS_ENTROPY(C, S, A)                                                                   \
    C(activate_fails)                                                                              \
    C(entropy_event_fails)                                                                         \
    C(entropy_event_count)                                                                         \
    C(entropy_bytes)                                                                               \
    C(host_rng_fails)                                                                              \
    C(entropy_rate_limiter_throttled)                                                              \
    C(rate_limiter_event_count)
#define METRICS_GET_API_REQUESTS(C, S, A)                                                          \
    C(instance_info_count)                                                                         \
    C(machine_cfg_count)                                                                           \
    C(mmds_count)                                                                                  \
    C(vmm_version_count)                                                                           \
    C(hotplug_memory_count)
#define METRICS_I8042(C, S, A)                                                                     \
    C(error_count)                                                                                 \
    C(missed_read_count)                                                                           \
    C(missed_write_count)                                                                          \
    C(read_count)                                                                                  \
    C(reset_count)                                                                                 \
    C(write_count)
#define METRICS_INTERRUPTS(C, S, A) C(triggers) C(config_updates)
#define METRICS_LATENCIES_US(C, S, A)                                                              \
    S(full_create_snapshot)                                                                        \
    S(diff_create_snapshot)                                                                        \
    S(load_snapshot)                                                                               \
    S(pause_vm)                                                                                    \
    S(resume_vm)                                                                                   \
    S(vmm_full_create_snapshot)                                                                    \
    S(vmm_diff_create_snapshot)                                                                    \
    S(vmm_load_snapshot)                                                                           \
    S(vmm_pause_vm)                                                                                \
    S(vmm_resume_vm)
#define METRICS_LOGGER(C, S, A)                                                                    \
    C(missed_metrics_count) C(metrics_fails) C(missed_log_count) C(rate_limited_log_count)
#define METRICS_MEMORY_HOTPLUG(C, S, A)                                                            \
    C(activate_fails)                                                                              \
    C(queue_event_fails)                                                                           \
    C(queue_event_count)                                                                           \
    C(plug_count)                                                                                  \
    C(plug_bytes)                                                                                  \
    C(plug_fails)                                                                                  \
    A(plug_agg)                                                                                    \
    C(unplug_count)                                                                                \
    C(unplug_bytes)                                                                                \
    C(unplug_fails)                                                                                \
    C(unplug_discard_fails)                                                                        \
    A(unplug_agg)                                                                                  \
    C(state_count)                                                                                 \
    C(state_fails)                                                                                 \
    A(state_agg)                                                                                   \
    C(unplug_all_count)                                                                            \
    C(unplug_all_fails)                                                                            \
    A(unplug_all_agg)
#define METRICS_MMDS(C, S, A)                                                                      \
    C(rx_accepted)                                                                                 \
    C(rx_accepted_err)                                                                             \
    C(rx_accepted_unusual)                                                                         \
    C(rx_bad_eth)                                                                                  \
    C(rx_invalid_token)                                                                            \
    C(rx_no_token)                                                                                 \
    C(rx_count)                                                                                    \
    C(tx_bytes)                                                                                    \
    C(tx_count)                                                                                    \
    C(tx_errors)                                                                                   \
    C(tx_frames)                                                                                   \
    C(connections_created)                                                                         \
    C(connections_destroyed)
#define METRICS_NET(C, S, A)                                                                       \
    C(activate_fails)                                                                              \
    C(cfg_fails)                                                                                   \
    C(no_rx_avail_buffer)                                                                          \
    C(no_tx_avail_buffer)                                                                          \
    C(event_fails)                                                                                 \
    C(rx_queue_event_count)                                                                        \
    C(rx_event_rate_limiter_count)                                                                 \
    C(rx_rate_limiter_throttled)                                                                   \
    C(rx_tap_event_count)                                                                          \
    C(rx_bytes_count)                                                                              \
    C(rx_packets_count)                                                                            \
    C(rx_fails)                                                                                    \
    C(rx_count)                                                                                    \
    C(tap_read_fails)                                                                              \
    C(tap_write_fails)                                                                             \
    A(tap_write_agg)                                                                               \
    C(tx_bytes_count)                                                                              \
    C(tx_malformed_frames)                                                                         \
    C(tx_fails)                                                                                    \
    C(tx_count)                                                                                    \
    C(tx_packets_count)                                                                            \
    C(tx_queue_event_count)                                                                        \
    C(tx_rate_limiter_event_count)                                                                 \
    C(tx_rate_limiter_throttled)                                                                   \
    C(tx_spoofed_mac_count)                                                                        \
    C(tx_remaining_reqs_count)
#define METRICS_REQUEST(C, name) C(name##_count) C(name##_fails)
#define METRICS_PATCH_API_REQUESTS(C, S, A)                                                        \
    METRICS_REQUEST(C, drive)                                                                      \
    METRICS_REQUEST(C, network)                                                                    \
    METRICS_REQUEST(C, machine_cfg)                                                                \
    METRICS_REQUEST(C, mmds)                                                                       \
    METRICS_REQUEST(C, hotplug_memory)                                                             \
    METRICS_REQUEST(C, pmem)
#define METRICS_PMEM(C, S, A)                                                                      \
    C(activate_fails)                                                                              \
    C(cfg_fails)                                                                                   \
    C(event_fails)                                                                                 \
    C(queue_event_count)                                                                           \
    C(rate_limiter_throttled_events)                                                               \
    C(rate_limiter_event_count)
#define METRICS_PUT_API_REQUESTS(C, S, A)                                                          \
    METRICS_REQUEST(C, actions)                                                                    \
    METRICS_REQUEST(C, boot_source)                                                                \
    METRICS_REQUEST(C, drive)                                                                      \
    METRICS_REQUEST(C, logger)                                                                     \
    METRICS_REQUEST(C, machine_cfg)                                                                \
    METRICS_REQUEST(C, cpu_cfg)                                                                    \
    METRICS_REQUEST(C, metrics)                                                                    \
    METRICS_REQUEST(C, network)                                                                    \
    METRICS_REQUEST(C, mmds)                                                                       \
    METRICS_REQUEST(C, vsock)                                                                      \
    METRICS_REQUEST(C, pmem)                                                                       \
    METRICS_REQUEST(C, serial)                                                                     \
    METRICS_REQUEST(C, hotplug_memory)
#define METRICS_SECCOMP(C, S, A) S(num_faults)
#define METRICS_SIGNALS(C, S, A)                                                                   \
    S(sigbus) S(sigsegv) S(sigxfsz) S(sigxcpu) C(sigpipe) S(sighup) S(sigill)
#define METRICS_UART(C, S, A)                                                                      \
    C(error_count)                                                                                 \
    C(flush_count)                                                                                 \
    C(missed_read_count)                                                                           \
    C(missed_write_count)                                                                          \
    C(read_count)                                                                                  \
    C(write_count)                                                                                 \
    C(rate_limiter_dropped_bytes)
#define METRICS_VCPU(C, S, A)                                                                      \
    C(exit_io_in)                                                                                  \
    C(exit_io_out)                                                                                 \
    C(exit_mmio_read)                                                                              \
    C(exit_mmio_write)                                                                             \
    C(failures)                                                                                    \
    C(kvmclock_ctrl_fails)                                                                         \
    A(exit_io_in_agg)                                                                              \
    A(exit_io_out_agg)                                                                             \
    A(exit_mmio_read_agg)                                                                          \
    A(exit_mmio_write_agg)
#define METRICS_VMM(C, S, A) S(panic_count)
#define METRICS_VSOCK(C, S, A)                                                                     \
    C(activate_fails)                                                                              \
    C(cfg_fails)                                                                                   \
    C(rx_queue_event_fails)                                                                        \
    C(tx_queue_event_fails)                                                                        \
    C(ev_queue_event_fails)                                                                        \
    C(muxer_event_fails)                                                                           \
    C(conn_event_fails)                                                                            \
    C(rx_queue_event_count)                                                                        \
    C(tx_queue_event_count)                                                                        \
    C(rx_bytes_count)                                                                              \
    C(tx_bytes_count)                                                                              \
    C(rx_packets_count)                                                                            \
    C(tx_packets_count)                                                                            \
    C(conns_added)                                                                                 \
    C(conns_killed)                                                                                \
    C(conns_removed)                                                                               \
    C(killq_resync)                                                                                \
    C(tx_flush_fails)                                                                              \
    C(tx_write_fails)                                                                              \
    C(rx_read_fails)

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

#define METRICS_WORD(name)    metric name;
#define METRICS_LATENCY(name) struct latency name;
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

/* A value as metrics_each() shows it. */
struct metrics_sample {
    const char *group, *name;
    const char *part; /* of a latency: "min_us", "max_us", "sum_us"; else NULL */
    const char *id;   /* of a device; NULL: none */
    bool is_counter;  /* only ever rises */
    uint64_t value;
};

/* Shows every value since the process began; all of one name follow each other. A group whose
 * devices have ids is shown by device. Main thread. */
void metrics_each(void (*show)(void *context, const struct metrics_sample *s), void *context);
