/*
 * What a client configures before a microVM starts: plain data, as the API and the configuration
 * file give it and as `GET /vm/config` returns it. Strings are heap blocks owned by the struct.
 * A zeroed struct is valid and empty; the _fini functions work on one.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum huge_pages { HUGE_PAGES_NONE, HUGE_PAGES_TRANSPARENT, HUGE_PAGES_2M };

enum cpu_template {
    CPU_TEMPLATE_C3,
    CPU_TEMPLATE_T2,
    CPU_TEMPLATE_T2S,
    CPU_TEMPLATE_NONE,
    CPU_TEMPLATE_T2CL,
    CPU_TEMPLATE_T2A,
};

struct machine_config {
    uint8_t vcpu_count; /* 1..32; 1 or even with smt */
    bool smt;
    bool track_dirty_pages;
    uint64_t mem_size_mib;
    enum cpu_template cpu_template;
    enum huge_pages huge_pages;
};

/* 1 vCPU, 128 MiB. */
extern const struct machine_config machine_config_default;

struct boot_source {
    char *kernel_image_path; /* NULL: none configured */
    char *initrd_path;       /* or NULL */
    char *boot_args;         /* NULL: the default command line; "" is an empty one */
};

struct token_bucket {
    uint64_t size; /* bytes or operations; 0: unlimited */
    uint64_t one_time_burst;
    uint64_t refill_time_ms; /* from empty to full; 0: unlimited */
};

struct rate_limits {
    bool has_bandwidth, has_ops;
    struct token_bucket bandwidth, ops;
};

/* False for a bucket that is no limit: of no size, or refilled at once, or in more time than 64
 * bits of nanoseconds hold. */
bool token_bucket_limits(const struct token_bucket *b);

/* Whether there is a limit at all. */
static inline bool rate_limits_any(const struct rate_limits *l)
{
    return l->has_bandwidth || l->has_ops;
}

/* What a PATCH does: a bucket that `patch` has replaces the one in *l, or removes it when it limits
 * nothing; the others stay. */
void rate_limits_update(struct rate_limits *l, const struct rate_limits *patch);

enum cache_type { CACHE_UNSAFE, CACHE_WRITEBACK };
enum io_engine { IO_ENGINE_SYNC, IO_ENGINE_ASYNC };

struct drive_config {
    char *drive_id;
    char *path_on_host;
    char *partuuid; /* or NULL */
    char *socket;   /* vhost-user: always refused */
    bool is_root_device;
    bool is_read_only;
    bool has_rate_limits;
    enum cache_type cache_type;
    enum io_engine io_engine;
    struct rate_limits rate_limits;
};

/* What PATCH /drives changes of a drive. */
struct drive_patch {
    char *drive_id;
    char *path_on_host; /* NULL: unchanged */
    bool has_rate_limits;
    struct rate_limits rate_limits; /* see rate_limits_update() */
};

struct net_config {
    char *iface_id;
    char *host_dev_name; /* "": the host chooses */
    char *guest_mac;     /* "xx:xx:xx:xx:xx:xx" in lower case, or NULL: the guest chooses */
    bool has_mtu, has_rx_limits, has_tx_limits;
    uint16_t mtu;
    struct rate_limits rx_limits, tx_limits;
};

/* What PATCH /network-interfaces changes of an interface: see rate_limits_update(). */
struct net_patch {
    char *iface_id;
    bool has_rx_limits, has_tx_limits;
    struct rate_limits rx_limits, tx_limits;
};

/* PUT /vsock. */
struct vsock_config {
    uint32_t guest_cid;
    char *uds_path; /* NULL: no vsock */
    char *vsock_id; /* deprecated, and of no effect; or NULL */
};

/* PUT /logger. What is not given stays as it is, but for the level: that is Info again. */
struct logger_config {
    char *log_path;
    unsigned level; /* enum log_level */
    bool has_level, has_show_level, has_show_origin;
    bool show_level, show_origin;
    char *module;
};

struct metrics_config {
    char *metrics_path;
    bool emit_id;
    char *properties; /* the text of a JSON object on one line, or NULL */
};

/* PUT /serial: where the guest's console goes instead of stdout, and how fast. */
struct serial_config {
    char *serial_out_path; /* NULL: stdin and stdout */
    bool has_limit;
    struct token_bucket limit; /* bytes */
};

/* A register's new value is (old & ~mask) | value. */
struct bit_filter {
    uint64_t mask, value;
};

enum cpuid_register { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

/* A CPU template: what the guest's processors have otherwise than KVM would give it. Lists are heap
 * blocks owned by the struct. */
struct cpu_config {
    struct kvm_capability {
        uint32_t number;
        bool is_dropped; /* not needed, rather than needed */
    } * capabilities;
    size_t capability_count;
    struct cpuid_modifier {
        uint32_t leaf, subleaf, flags;
        struct cpuid_register_modifier {
            enum cpuid_register reg;
            struct bit_filter bits;
        } * registers;
        size_t register_count;
    } * leaves;
    size_t leaf_count;
    struct msr_modifier {
        uint32_t index;
        struct bit_filter bits;
    } * msrs;
    size_t msr_count;
};

void net_config_fini(struct net_config *n);
void net_patch_fini(struct net_patch *p);
void vsock_config_fini(struct vsock_config *v);
void logger_config_fini(struct logger_config *l);
void metrics_config_fini(struct metrics_config *m);
void serial_config_fini(struct serial_config *s);
void cpu_config_fini(struct cpu_config *c);
void boot_source_fini(struct boot_source *b);
void drive_config_fini(struct drive_config *d);
void drive_patch_fini(struct drive_patch *p);
