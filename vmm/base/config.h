/*
 * What a client configures: plain data, as the API and the configuration file give it and as
 * `GET /vm/config` returns it. Strings and lists are heap blocks, owned by the struct. The _fini
 * functions free them, and work on a zeroed struct, which is empty; but a struct machine_config
 * starts as machine_config_default.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A token bucket limits nothing, and is none, where it has no size, is refilled at once, or in more
 * time than 64 bits of nanoseconds hold: token_bucket_limits() says so. */
struct token_bucket {
    uint64_t size; /* bytes or operations */
    uint64_t one_time_burst;
    uint64_t refill_time_ms; /* from empty to full */
};

struct rate_limits {
    /* What was given, also where it limits nothing: a PATCH of that removes a limit. */
    bool has_bandwidth, has_ops;
    struct token_bucket bandwidth, ops;
};

enum huge_pages { HUGE_PAGES_NONE, HUGE_PAGES_TRANSPARENT, HUGE_PAGES_2M };

enum cpu_template {
    CPU_TEMPLATE_NONE,
    CPU_TEMPLATE_C3,
    CPU_TEMPLATE_T2,
    CPU_TEMPLATE_T2S,
    CPU_TEMPLATE_T2CL,
    CPU_TEMPLATE_T2A,
    CPU_TEMPLATE_CUSTOM, /* that of /cpu-config */
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

/* A register's new value is (old & ~mask) | value. */
struct bit_filter {
    uint64_t mask, value;
};

enum cpuid_register { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

/* A CPU template: what the guest's processors have otherwise than KVM would give it. */
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

struct text_list {
    char **items;
    size_t count;
};

enum cache_type { CACHE_UNSAFE, CACHE_WRITEBACK };
enum io_engine { IO_ENGINE_SYNC, IO_ENGINE_ASYNC };

struct drive_config {
    char *drive_id;
    char *path_on_host;
    char *overlay_path;      /* what takes the writes to it; NULL: itself */
    struct text_list layers; /* frozen overlays between the two, the lowest first */
    bool is_frozen; /* while a snapshot is made or loaded: the overlay is a new one, which has
                       nothing, and is not the snapshot's */
    char *partuuid; /* or NULL */
    char *socket;   /* vhost-user: always refused */
    bool is_root_device;
    bool is_read_only;
    bool has_discard; /* whether the guest may discard was said; else the file decides */
    bool may_discard;
    enum cache_type cache_type;
    enum io_engine io_engine;
    struct rate_limits rate_limits;
};

struct net_config {
    char *iface_id;
    char *host_dev_name; /* "": the host chooses */
    char *guest_mac;     /* "xx:xx:xx:xx:xx:xx" in lower case, or NULL: the guest chooses */
    bool has_mtu;
    uint16_t mtu;
    struct rate_limits rx_limits, tx_limits;
};

#define SMBIOS_SERIAL_MAX 255u
enum mmds_version { MMDS_V1, MMDS_V2 };

/* The metadata service, but for the data. */
struct mmds_config {
    enum mmds_version version;   /* V2: a guest's request needs a token */
    struct text_list interfaces; /* that have it: each once; none: there is no MMDS */
    char *ipv4_address;          /* a dotted quad, where guests find it */
    bool imds_compat;            /* answers are as EC2's: text, whatever a guest accepts */
};

/* All of it. An endpoint is a member here. */
struct vm_config {
    struct boot_source boot_source;
    struct machine_config machine;
    struct cpu_config cpu; /* where machine.cpu_template is CPU_TEMPLATE_CUSTOM */
    struct drive_configs {
        struct drive_config *items;
        size_t count;
    } drives; /* in attach order: the root drive first */
    struct net_configs {
        struct net_config *items;
        size_t count;
    } interfaces; /* in attach order, behind the drives */
    struct vsock_config {
        uint32_t guest_cid;
        char *uds_path; /* NULL: no vsock */
        char *vsock_id; /* deprecated, and of no effect; or NULL */
    } vsock;
    struct logger_config {
        char *log_path; /* NULL: stays where it goes */
        char *module;   /* NULL: stays what it is */
        unsigned level; /* enum log_level */
        bool show_level, show_origin;
    } logger;
    struct metrics_config {
        char *metrics_path; /* NULL: none */
        char *properties;   /* the text of a JSON object on one line, or NULL */
        bool emit_id;
    } metrics;
    struct smbios_config {
        char *uuid;   /* "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx" in lower case; NULL: no SMBIOS */
        char *serial; /* up to SMBIOS_SERIAL_MAX printable characters of ASCII, or NULL */
    } smbios;
    struct mmds_config mmds;
    struct serial_config {         /* of the guest's console */
        char *serial_out_path;     /* NULL: stdin and stdout */
        struct token_bucket limit; /* of its output, in bytes */
    } serial;
};

/* What PATCH /drives changes of a drive. */
struct drive_patch {
    char *drive_id;
    char *path_on_host; /* NULL: unchanged */
    bool has_rate_limits;
    struct rate_limits rate_limits; /* see rate_limits_update() */
};

/* What PATCH /network-interfaces changes of an interface: see rate_limits_update(). */
struct net_patch {
    char *iface_id;
    struct rate_limits rx_limits, tx_limits;
};

/* Other files for drives. */
struct drive_overrides {
    struct drive_override {
        char *drive_id, *path_on_host, *overlay_path; /* NULL: as it was */
    } * items;
    size_t count;
};

/* What is asked of a snapshot that is made. */
struct snapshot_create_config {
    char *snapshot_path, *mem_file_path;
    enum { SNAPSHOT_TYPE_FULL, SNAPSHOT_TYPE_DIFF } type;
    bool sync;                             /* files are on the disk when it is answered */
    bool live;                             /* the guest runs meanwhile, but for a moment */
    struct drive_overrides drive_overlays; /* those frozen, and where they go on */
};

/* What has become of one that was live. */
struct snapshot_created {
    uint64_t paused_us; /* the guest stood still, in all */
    uint64_t passes;    /* over memory, with the one while it stood */
    uint64_t pages_while_paused;
};

/* What is asked of one that is loaded. */
struct snapshot_load_config {
    char *snapshot_path;
    char *mem_file_path; /* deprecated: a backend that is a file. One of the two is given */
    struct mem_backend {
        char *path;
        enum { MEM_BACKEND_FILE, MEM_BACKEND_UFFD } type;
        struct text_list layers; /* of a file: files with what has changed, upon it, oldest first */
    } backend;
    bool enable_diff_snapshots, track_dirty_pages; /* either; the first is deprecated */
    bool resume_vm;
    bool clock_realtime; /* the guest's kvmclock goes on by what has passed since */
    enum { LOAD_HUGE_PAGES_AS_SAVED, LOAD_HUGE_PAGES = 1 } huge_pages; /* + enum huge_pages */
    struct network_overrides {
        struct network_override {
            char *iface_id, *host_dev_name;
        } * items;
        size_t count;
    } network_overrides;                    /* of an id that is there twice the last counts */
    struct drive_overrides drive_overrides; /* likewise */
    struct vsock_override {
        char *uds_path;
    } vsock_override; /* NULL: none */
    struct working_set_config {
        char *path;  /* NULL: none */
        bool record; /* else prefetch it */
    } working_set;
};

/* False for a bucket that is none. */
bool token_bucket_limits(const struct token_bucket *b);

/* Whether there is a limit at all. */
bool rate_limits_any(const struct rate_limits *l);

/* What a PATCH does: a bucket that `patch` has replaces the one in *l whole; the others stay. */
void rate_limits_update(struct rate_limits *l, const struct rate_limits *patch);

/* Each frees what its struct owns, and zeroes it. */
void text_list_fini(struct text_list *l);
void boot_source_fini(struct boot_source *b);
void cpu_config_fini(struct cpu_config *c);
void drive_config_fini(struct drive_config *d);
void net_config_fini(struct net_config *n);
void vsock_config_fini(struct vsock_config *v);
void smbios_config_fini(struct smbios_config *s);
void mmds_config_fini(struct mmds_config *m);
void serial_config_fini(struct serial_config *s);
void vm_config_fini(struct vm_config *c);
void drive_patch_fini(struct drive_patch *p);
void net_patch_fini(struct net_patch *p);
void snapshot_create_config_fini(struct snapshot_create_config *c);
void snapshot_load_config_fini(struct snapshot_load_config *c);
