#include "vmm/machine/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "virtio/vsock_unix.h"
#include "vmm/base/clock.h"
#include "vmm/base/console.h"
#include "vmm/base/log.h"
#include "vmm/base/metrics.h"
#include "vmm/base/timeline.h"
#include "vmm/boot/cmdline.h"
#include "vmm/kvm/cpu_template.h"
#include "vmm/machine/machine.h"

struct vm {
    struct loop *loop;
    struct vm_options options;
    enum vm_state state;
    struct machine_config machine_config;
    struct boot_source boot_source;
    int kernel_fd, initrd_fd; /* of boot_source; -1: none */
    struct drives drives;
    struct interfaces interfaces;
    struct vsock_config vsock;
    int vsock_listener; /* of vsock; -1: none */
    struct serial_config serial;
    struct cpu_config cpu_config; /* of PUT /cpu-config */
    bool has_cpu_config;          /* it is later than machine_config.cpu_template */
    char *log_module;             /* NULL: none, or not from here */
    struct machine *machine;      /* NULL until started */
    struct loop_source guest_end; /* machine->end.event_fd */
};

#define IN(state)    (1u << (state))
#define BEFORE_START IN(VM_NOT_STARTED)
#define AFTER_START  (IN(VM_RUNNING) | IN(VM_PAUSED))

/* The states in which each action is allowed. */
static const unsigned allowed_in[ACTIONS] = {
    [ACT_PUT_MACHINE] = BEFORE_START,     [ACT_PATCH_MACHINE] = BEFORE_START,
    [ACT_PUT_BOOT_SOURCE] = BEFORE_START, [ACT_PUT_DRIVE] = BEFORE_START,
    [ACT_PATCH_DRIVE] = AFTER_START,      [ACT_START] = BEFORE_START,
    [ACT_CTRL_ALT_DEL] = AFTER_START,     [ACT_PAUSE] = AFTER_START,
    [ACT_RESUME] = AFTER_START,           [ACT_FLUSH_METRICS] = AFTER_START,
    [ACT_PUT_LOGGER] = BEFORE_START,      [ACT_PUT_METRICS] = BEFORE_START,
    [ACT_PUT_SERIAL] = BEFORE_START,      [ACT_PUT_CPU_CONFIG] = BEFORE_START,
    [ACT_PUT_NET] = BEFORE_START,         [ACT_PATCH_NET] = AFTER_START,
    [ACT_PUT_VSOCK] = BEFORE_START,
};

struct vm *vm_new(struct loop *loop, const struct vm_options *options)
{
    struct vm *vm = calloc(1, sizeof(*vm));

    BUG_ON(!vm);
    vm->loop = loop;
    vm->options = *options;
    vm->machine_config = machine_config_default;
    vm->kernel_fd = vm->initrd_fd = -1;
    vm->vsock_listener = -1;
    return vm;
}

static int apply_machine(struct vm *vm, const struct machine_request *r,
                         const struct machine_config *base, struct error *e)
{
    struct machine_config c = *base;

    if (r->given & MACHINE_VCPU_COUNT)
        c.vcpu_count = r->config.vcpu_count;
    if (r->given & MACHINE_MEM_SIZE)
        c.mem_size_mib = r->config.mem_size_mib;
    if (r->given & MACHINE_SMT)
        c.smt = r->config.smt;
    if (r->given & MACHINE_CPU_TEMPLATE)
        c.cpu_template = r->config.cpu_template;
    if (r->given & MACHINE_TRACK_DIRTY)
        c.track_dirty_pages = r->config.track_dirty_pages;
    if (r->given & MACHINE_HUGE_PAGES)
        c.huge_pages = r->config.huge_pages;
    if (c.vcpu_count == 0 || c.vcpu_count > PLATFORM_VCPUS_MAX ||
        (c.smt && c.vcpu_count > 1 && c.vcpu_count % 2))
        return fail(e, ERR_INVALID,
                    "The number of vCPUs must be greater than 0, less than %u and must be 1 or an "
                    "even number if SMT is enabled.",
                    PLATFORM_VCPUS_MAX);
    if (c.mem_size_mib == 0 || (c.huge_pages != HUGE_PAGES_NONE && c.mem_size_mib % 2))
        return fail(e, ERR_INVALID,
                    "The memory size (MiB) is either 0, or not a multiple of the configured page "
                    "size.");
    vm->machine_config = c;
    if (r->given & MACHINE_CPU_TEMPLATE) /* of the two kinds of template the later one counts */
        vm->has_cpu_config = false;
    return 0;
}

/* A PUT starts from the defaults, but a template that is not mentioned stays. */
static int put_machine(struct vm *vm, const struct machine_request *r, struct error *e)
{
    struct machine_config base = machine_config_default;

    base.cpu_template = vm->machine_config.cpu_template;
    return apply_machine(vm, r, &base, e);
}

/* Non-blocking, so that a FIFO does not wait for a writer; what is no image is refused at the
 * start, when it is read. */
static int open_image(const char *path)
{
    return open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

static int put_boot_source(struct vm *vm, struct boot_source *b, struct error *e)
{
    autofd int kernel = open_image(b->kernel_image_path);
    autofd int initrd = -1;
    struct cmdline cmdline;

    if (kernel < 0)
        return fail_os(e, errno, "The kernel file cannot be opened");
    if (b->initrd_path) {
        initrd = open_image(b->initrd_path);
        if (initrd < 0)
            return fail(e, ERR_HOST,
                        "The initrd file cannot be opened due to invalid path or invalid "
                        "permissions. %s (os error %d)",
                        strerror(errno), errno);
    }
    if (cmdline_init(&cmdline, b->boot_args, e) < 0)
        return -1;
    close_fdp(&vm->kernel_fd);
    close_fdp(&vm->initrd_fd);
    boot_source_fini(&vm->boot_source);
    vm->kernel_fd = take_fd(&kernel);
    vm->initrd_fd = take_fd(&initrd);
    vm->boot_source = *b;
    *b = (struct boot_source){ 0 };
    return 0;
}

/* The guest stands still while its disk changes. It reads the configuration in several loads, which
 * are plain ones (virtio/mmio.h): between two of them both the configuration and its generation
 * change, or neither (virtio 1.2, section 2.5.1). */
static int update_block(struct vm *vm, unsigned at, const struct block_file *file,
                        const struct rate_limits *limits, struct error *e)
{
    struct machine *m = vm->machine;
    bool is_seen = file && vm->state == VM_RUNNING;
    int ret;

    if (is_seen)
        vcpus_pause(&m->vcpus);
    ret = block_update(&m->blocks[at], file, limits, e);
    if (is_seen)
        vcpus_resume(&m->vcpus);
    return ret;
}

/* All of a patch or nothing. */
static int change_drive(struct vm *vm, struct drive_patch *p, struct error *e)
{
    const struct rate_limits *limits = p->has_rate_limits ? &p->rate_limits : NULL;
    unsigned at = drives_find(&vm->drives, p->drive_id);
    struct block_file file = { .fd = -1 };
    struct drive_config *config;

    if (at == vm->drives.count)
        return fail(e, ERR_INVALID, "Failed perform action on device: Device not found");
    config = &vm->drives.items[at].config;
    if (!p->path_on_host && !limits)
        return fail(e, ERR_INVALID, "Block: Running method expected different backend.");
    if (p->path_on_host && block_file_open(&file, p->path_on_host, config->is_read_only, e) < 0)
        return fail_within(e, "Block");
    if (update_block(vm, at, p->path_on_host ? &file : NULL, limits, e) < 0) {
        block_file_close(&file);
        return fail_within(e, "Block");
    }
    if (p->path_on_host) {
        free(config->path_on_host);
        config->path_on_host = p->path_on_host;
        p->path_on_host = NULL;
    }
    if (limits) {
        rate_limits_update(&config->rate_limits, limits);
        config->has_rate_limits = rate_limits_any(&config->rate_limits);
    }
    return 0;
}

static int patch_drive(struct vm *vm, struct drive_patch *p, struct error *e)
{
    struct error why;

    if (change_drive(vm, p, &why) == 0)
        return 0;
    return fail(e, why.kind,
                "Unable to patch the block device: %.900s Please verify the request arguments.",
                why.msg);
}

static int patch_net(struct vm *vm, const struct net_patch *p, struct error *e)
{
    unsigned at = interfaces_find(&vm->interfaces, p->iface_id);
    struct net_config *config;

    if (at == vm->interfaces.count)
        return fail(e, ERR_INVALID,
                    "Unable to update the net device: Failed perform action on device: Device not "
                    "found");
    if (net_update(&vm->machine->nets[at], p->has_rx_limits ? &p->rx_limits : NULL,
                   p->has_tx_limits ? &p->tx_limits : NULL, e) < 0)
        return fail_within(e, "Unable to update the net device");
    config = &vm->interfaces.items[at].config;
    rate_limits_update(&config->rx_limits, &p->rx_limits);
    config->has_rx_limits = rate_limits_any(&config->rx_limits);
    rate_limits_update(&config->tx_limits, &p->tx_limits);
    config->has_tx_limits = rate_limits_any(&config->tx_limits);
    return 0;
}

/* A socket that was configured before gives way with its file; one at the same path goes on. */
static int put_vsock(struct vm *vm, struct vsock_config *c, struct error *e)
{
    if (!vm->vsock.uds_path || strcmp(vm->vsock.uds_path, c->uds_path) != 0) {
        int fd = vsock_unix_listen(c->uds_path, e);

        if (fd < 0)
            return fail_within(e, "Cannot create backend for vsock device");
        if (vm->vsock.uds_path)
            unlink(vm->vsock.uds_path);
        close_fdp(&vm->vsock_listener);
        vm->vsock_listener = fd;
    }
    vsock_config_fini(&vm->vsock);
    vm->vsock = *c;
    *c = (struct vsock_config){ 0 };
    return 0;
}

static int put_logger(struct vm *vm, struct logger_config *c, struct error *e)
{
    struct log_options o = log_get_options();

    if (c->log_path && log_open(c->log_path, e) < 0)
        return -1;
    o.level = c->has_level ? (enum log_level)c->level : LOG_INFO;
    if (c->has_show_level)
        o.show_level = c->show_level;
    if (c->has_show_origin)
        o.show_origin = c->show_origin;
    if (c->module)
        o.module = c->module;
    log_set_options(o);
    if (c->module) {
        free(vm->log_module);
        vm->log_module = c->module;
        c->module = NULL;
    }
    return 0;
}

static void put_serial(struct vm *vm, struct serial_config *c)
{
    serial_config_fini(&vm->serial);
    vm->serial = *c;
    *c = (struct serial_config){ 0 };
}

static void put_cpu_config(struct vm *vm, struct cpu_config *c)
{
    cpu_config_fini(&vm->cpu_config);
    vm->cpu_config = *c;
    *c = (struct cpu_config){ 0 };
    vm->has_cpu_config = true;
    vm->machine_config.cpu_template = CPU_TEMPLATE_NONE;
}

static void on_guest_end(struct loop_source *src, uint32_t ready)
{
    struct vm *vm = owner_of(src, struct vm, guest_end);

    (void)ready;
    loop_stop(vm->loop, vm->machine->end.exit_code);
}

/* From here on the machine belongs to the loop and to its threads: what fails now can't be undone
 * and ends the process. */
static int set_off(struct vm *vm, struct error *e)
{
    const struct seccomp_threads *seccomp = vm->options.seccomp;
    struct machine *m = vm->machine;
    int ret;

    vm->guest_end = (struct loop_source){ m->end.event_fd, EPOLLIN, on_guest_end };
    ret = loop_add(vm->loop, &vm->guest_end);
    if (ret < 0)
        return fail_os(e, -ret, "event loop");
    if (!vm->serial.serial_out_path && console_has_input() &&
        serial_attach_input(&m->serial, vm->loop, e) == 0)
        console_raw();
    if (vcpus_start(&m->vcpus, seccomp ? seccomp->vcpu : NULL, e) < 0)
        return -1;
    ret = seccomp ? seccomp_install(seccomp->main) : 0;
    if (ret < 0)
        return fail_os(e, -ret, "cannot install the seccomp filter");
    vcpus_resume(&m->vcpus);
    copy_ahead_start(&m->copy_ahead, vm->loop);
    return 0;
}

static int start(struct vm *vm, struct error *e)
{
    struct machine_plan plan = {
        .config = &vm->machine_config,
        .kernel_fd = vm->kernel_fd,
        .initrd_fd = vm->initrd_fd,
        .boot_args = vm->boot_source.boot_args,
        .cpu_template = &vm->cpu_config,
        .serial = &vm->serial,
        .boot_timer = vm->options.boot_timer,
        .drives = &vm->drives,
        .interfaces = &vm->interfaces,
        .vsock = vm_vsock(vm),
        .vsock_listener = vm->vsock_listener,
    };
    struct error late;

    timeline_mark(PHASE_INSTANCE_START);
    if (vm->kernel_fd < 0)
        return fail(e, ERR_INVALID, "Cannot start microvm without kernel configuration.");
    if (!vm->has_cpu_config &&
        cpu_template_find(&plan.cpu_template, vm->machine_config.cpu_template, e) < 0)
        return -1;
    if (machine_build(&vm->machine, &plan, vm->loop, e) < 0)
        return -1;
    if (set_off(vm, e) < 0) {
        loop_stop(vm->loop, 1);
        return -1;
    }
    vm->state = VM_RUNNING;
    timeline_mark(PHASE_STARTED);
    if (metrics_start(vm->loop, &late) < 0)
        log_error("%s", late.msg);
    return 0;
}

static void log_duration(const char *what, metric *latency, uint64_t start_us)
{
    uint64_t us = monotonic_us() - start_us;

    metric_set(latency, us);
    log_info("'%s' VMM action took %llu us.", what, (unsigned long long)us);
}

static void pause_vm(struct vm *vm)
{
    uint64_t start_us = monotonic_us();

    if (vm->state == VM_RUNNING) {
        vcpus_pause(&vm->machine->vcpus);
        for (unsigned i = 0; i < vm->machine->platform.virtio_count; i++)
            virtio_mmio_pause(&vm->machine->transports[i]);
        serial_pause(&vm->machine->serial);
        metrics_pause();
        vm->state = VM_PAUSED;
    }
    log_duration("pause vm", &metrics.latencies_us.vmm_pause_vm, start_us);
}

static void resume_vm(struct vm *vm)
{
    uint64_t start_us = monotonic_us();

    if (vm->state == VM_PAUSED) {
        metrics_resume();
        serial_resume(&vm->machine->serial);
        for (unsigned i = 0; i < vm->machine->platform.virtio_count; i++)
            virtio_mmio_resume(&vm->machine->transports[i]);
        vcpus_resume(&vm->machine->vcpus);
        vm->state = VM_RUNNING;
    }
    log_duration("resume vm", &metrics.latencies_us.vmm_resume_vm, start_us);
}

static int carry_out(struct vm *vm, struct action *a, struct error *e)
{
    switch (a->kind) {
    case ACT_PUT_MACHINE: return put_machine(vm, &a->machine, e);
    case ACT_PATCH_MACHINE: return apply_machine(vm, &a->machine, &vm->machine_config, e);
    case ACT_PUT_BOOT_SOURCE: return put_boot_source(vm, &a->boot_source, e);
    case ACT_PUT_DRIVE: return drives_put(&vm->drives, &a->drive, e);
    case ACT_PATCH_DRIVE: return patch_drive(vm, &a->drive_patch, e);
    case ACT_PUT_NET: return interfaces_put(&vm->interfaces, &a->net, e);
    case ACT_PATCH_NET: return patch_net(vm, &a->net_patch, e);
    case ACT_PUT_VSOCK: return put_vsock(vm, &a->vsock, e);
    case ACT_PUT_LOGGER: return put_logger(vm, &a->logger, e);
    case ACT_PUT_METRICS: return metrics_open(&a->metrics, vm->options.id, e);
    case ACT_PUT_SERIAL: put_serial(vm, &a->serial); return 0;
    case ACT_PUT_CPU_CONFIG: put_cpu_config(vm, &a->cpu); return 0;
    case ACT_START: return start(vm, e);
    case ACT_CTRL_ALT_DEL: return i8042_ctrl_alt_del(&vm->machine->i8042, e);
    case ACT_FLUSH_METRICS: metrics_write(); return 0;
    case ACT_PAUSE: pause_vm(vm); return 0;
    case ACT_RESUME: resume_vm(vm); return 0;
    case ACTIONS: break;
    }
    BUG_ON(true);
}

int vm_apply(struct vm *vm, struct action *a, struct error *e)
{
    if (!(allowed_in[a->kind] & IN(vm->state)))
        return fail(e, ERR_STATE, "The requested operation is not supported %s the microVM.",
                    vm->state == VM_NOT_STARTED ? "before starting" : "after starting");
    return carry_out(vm, a, e);
}

void action_fini(struct action *a)
{
    switch (a->kind) {
    case ACT_PUT_BOOT_SOURCE: boot_source_fini(&a->boot_source); break;
    case ACT_PUT_DRIVE: drive_config_fini(&a->drive); break;
    case ACT_PATCH_DRIVE: drive_patch_fini(&a->drive_patch); break;
    case ACT_PUT_NET: net_config_fini(&a->net); break;
    case ACT_PATCH_NET: net_patch_fini(&a->net_patch); break;
    case ACT_PUT_VSOCK: vsock_config_fini(&a->vsock); break;
    case ACT_PUT_LOGGER: logger_config_fini(&a->logger); break;
    case ACT_PUT_METRICS: metrics_config_fini(&a->metrics); break;
    case ACT_PUT_SERIAL: serial_config_fini(&a->serial); break;
    case ACT_PUT_CPU_CONFIG: cpu_config_fini(&a->cpu); break;
    default: break;
    }
}

void vm_stop(struct vm *vm)
{
    console_restore();
    if (!vm->machine)
        return;
    vcpus_pause(&vm->machine->vcpus);
    for (unsigned i = 0; i < vm->machine->platform.virtio_count; i++)
        virtio_mmio_pause(&vm->machine->transports[i]);
    for (unsigned i = 0; i < vm->drives.count; i++) {
        const struct drive *d = &vm->drives.items[i];
        int ret = d->config.cache_type == CACHE_WRITEBACK ? block_file_sync(&d->file) : 0;

        if (ret)
            log_error("Drive %s: cannot sync: %s", d->config.drive_id, strerror(-ret));
    }
}

void vm_free(struct vm *vm)
{
    struct log_options log = log_get_options();

    drives_fini(&vm->drives);
    interfaces_fini(&vm->interfaces);
    close_fdp(&vm->kernel_fd);
    close_fdp(&vm->initrd_fd);
    boot_source_fini(&vm->boot_source);
    close_fdp(&vm->vsock_listener);
    vsock_config_fini(&vm->vsock);
    serial_config_fini(&vm->serial);
    cpu_config_fini(&vm->cpu_config);
    if (vm->log_module) {
        log.module = NULL;
        log_set_options(log);
        free(vm->log_module);
    }
    free(vm);
}

void vm_close(struct vm *vm)
{
    if (vm->machine)
        machine_close_kvm(vm->machine);
}

const char *vm_id(const struct vm *vm)
{
    return vm->options.id;
}

enum vm_state vm_state(const struct vm *vm)
{
    return vm->state;
}

const struct machine_config *vm_machine_config(const struct vm *vm)
{
    return &vm->machine_config;
}

const struct boot_source *vm_boot_source(const struct vm *vm)
{
    return &vm->boot_source;
}

unsigned vm_drive_count(const struct vm *vm)
{
    return vm->drives.count;
}

const struct drive_config *vm_drive(const struct vm *vm, unsigned i)
{
    return &vm->drives.items[i].config;
}

unsigned vm_net_count(const struct vm *vm)
{
    return vm->interfaces.count;
}

const struct net_config *vm_net(const struct vm *vm, unsigned i)
{
    return &vm->interfaces.items[i].config;
}

const struct vsock_config *vm_vsock(const struct vm *vm)
{
    return vm->vsock.uds_path ? &vm->vsock : NULL;
}
