#include "vmm/machine/vm.h"

#include <errno.h>
#include <fcntl.h>

#include "vmm/base/capabilities.h"
#include "vmm/base/clock.h"
#include "vmm/base/console.h"
#include "vmm/base/log.h"
#include "vmm/base/metrics.h"
#include "vmm/base/syslog.h"
#include "vmm/base/timeline.h"
#include "vmm/boot/cmdline.h"
#include "vmm/machine/live.h"
#include "vmm/machine/live_snapshot.h"
#include "vmm/machine/machine.h"
#include "vmm/machine/metadata.h"
#include "vmm/machine/snapshots.h"

struct vm {
    struct loop *loop;
    struct vm_options options;
    enum vm_state state;
    bool is_for_boot; /* what a boot needs was configured, or tried to be: nothing can be loaded */
    struct vm_config config;
    struct opened opened; /* for that */
    struct mmds_store metadata;
    struct machine *machine;      /* NULL until started */
    struct loop_source guest_end; /* machine->end.event_fd */
    struct live_snapshot *live;   /* that is being made; NULL: none is */
    struct vm_waiter *waiter;     /* for that */
};

struct vm *vm_new(struct loop *loop, const struct vm_options *options)
{
    struct vm *vm = calloc(1, sizeof(*vm));

    BUG_ON(!vm);
    vm->loop = loop;
    vm->options = *options;
    vm->config.machine = machine_config_default;
    vm->metadata.limit_bytes = options->metadata_max_bytes;
    vm->opened = (struct opened){
        .kernel_fd = -1,
        .initrd_fd = -1,
        .vsock.fd = -1,
        .metadata = &vm->metadata,
        .kvm = KVM_NONE,
    };
    return vm;
}

void vm_prepare(struct vm *vm)
{
    struct error e;

    if (!vm->machine && kvm_open(&vm->opened.kvm, NULL, &e) < 0)
        log_debug("No VM is made ahead: %s", e.msg);
}

static int put_logger(struct vm *vm, struct action *a, struct error *e)
{
    struct logger_config *c = &a->config.logger;
    struct log_options o = log_get_options();

    if (c->log_path && log_open(c->log_path, e) < 0)
        return -1;
    o.level = (enum log_level)c->level;
    o.show_level = c->show_level;
    o.show_origin = c->show_origin;
    if (c->module)
        o.module = c->module;
    log_set_options(o);
    if (c->module) {
        free(vm->config.logger.module);
        vm->config.logger.module = c->module;
        c->module = NULL;
    }
    return 0;
}

static int put_metrics(struct vm *vm, struct action *a, struct error *e)
{
    return metrics_open(&a->config.metrics, vm->options.id, e);
}

static int put_machine(struct vm *vm, struct action *a, struct error *e)
{
    const struct machine_config *c = &a->config.machine;

    if (machine_check(c, e) < 0)
        return -1;
    vm->config.machine = *c;
    return 0;
}

static int put_cpu_config(struct vm *vm, struct action *a, struct error *e)
{
    (void)e;
    cpu_config_fini(&vm->config.cpu);
    vm->config.cpu = a->config.cpu;
    a->config.cpu = (struct cpu_config){ 0 };
    vm->config.machine.cpu_template = CPU_TEMPLATE_CUSTOM;
    return 0;
}

/* Non-blocking, so that a FIFO does not wait for a writer; what is no image is refused at the
 * start, when it is read. */
static int open_image(const char *path)
{
    return open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static int put_boot_source(struct vm *vm, struct action *a, struct error *e)
{
    struct boot_source *b = &a->config.boot_source;
    autofd int kernel = open_image(b->kernel_image_path);
    autofd int initrd = -1;
    struct cmdline cmdline;

    if (kernel < 0)
        return fail_path(e, errno, b->kernel_image_path, "The kernel file cannot be opened");
    if (b->initrd_path) {
        initrd = open_image(b->initrd_path);
        if (initrd < 0)
            return fail(e, ERR_HOST,
                        "The initrd file cannot be opened due to invalid path or invalid "
                        "permissions. %s (os error %d)%s%s",
                        os_error_text(errno), errno, *b->initrd_path ? " " : "", b->initrd_path);
    }
    if (cmdline_init(&cmdline, b->boot_args, e) < 0)
        return -1;
    close_fdp(&vm->opened.kernel_fd);
    close_fdp(&vm->opened.initrd_fd);
    boot_source_fini(&vm->config.boot_source);
    vm->opened.kernel_fd = take_fd(&kernel);
    vm->opened.initrd_fd = take_fd(&initrd);
    vm->config.boot_source = *b;
    *b = (struct boot_source){ 0 };
    return 0;
}

static int put_drives(struct vm *vm, struct action *a, struct error *e)
{
    for (size_t i = 0; i < a->config.drives.count; i++)
        if (drives_put(&vm->config.drives, &vm->opened.drives, &a->config.drives.items[i], e) < 0)
            return -1;
    return 0;
}

static int put_interfaces(struct vm *vm, struct action *a, struct error *e)
{
    for (size_t i = 0; i < a->config.interfaces.count; i++)
        if (interfaces_put(&vm->config.interfaces, &vm->opened.interfaces,
                           &a->config.interfaces.items[i], e) < 0)
            return -1;
    return 0;
}

static int patch_drive(struct vm *vm, struct action *a, struct error *e)
{
    return live_patch_drive(vm->machine, &vm->config.drives, &a->drive_patch, e);
}

static int patch_net(struct vm *vm, struct action *a, struct error *e)
{
    return live_patch_net(vm->machine, &vm->config.interfaces, &a->net_patch, e);
}

/* A socket that was configured before gives way with its file; one whose file is still at the path
 * goes on. */
static int put_vsock(struct vm *vm, struct action *a, struct error *e)
{
    struct vsock_config *new = &a->config.vsock, *old = &vm->config.vsock;
    struct vsock_listener *l = &vm->opened.vsock, made;

    if (!vsock_unix_is_at(l, new->uds_path)) {
        if (vsock_unix_listen(&made, new->uds_path, e) < 0)
            return fail_within(e, "Cannot create backend for vsock device");
        if (old->uds_path)
            vsock_unix_close(l, old->uds_path);
        *l = made;
    }
    vsock_config_fini(old);
    *old = (struct vsock_config){ .guest_cid = new->guest_cid, .uds_path = new->uds_path };
    new->uds_path = NULL;
    return 0;
}

static int put_smbios(struct vm *vm, struct action *a, struct error *e)
{
    (void)e;
    smbios_config_fini(&vm->config.smbios);
    vm->config.smbios = a->config.smbios;
    a->config.smbios = (struct smbios_config){ 0 };
    return 0;
}

static int put_serial(struct vm *vm, struct action *a, struct error *e)
{
    (void)e;
    serial_config_fini(&vm->config.serial);
    vm->config.serial = a->config.serial;
    a->config.serial = (struct serial_config){ 0 };
    return 0;
}

static int put_mmds_config(struct vm *vm, struct action *a, struct error *e)
{
    return metadata_configure(&vm->config.mmds, &a->config.mmds, &vm->config.interfaces, e);
}

const struct mmds_store *vm_metadata(const struct vm *vm, struct error *e)
{
    if (vm->state == VM_NOT_STARTED || vm->config.mmds.interfaces.count > 0)
        return &vm->metadata;
    fail(e, ERR_INVALID, "The MMDS data store is not initialized.");
    return NULL;
}

static int change_metadata(struct vm *vm, struct action *a, struct error *e)
{
    if (!vm_metadata(vm, e) ||
        (a->kind == ACT_PUT_MMDS ? mmds_store_put(&vm->metadata, a->metadata, e)
                                 : mmds_store_patch(&vm->metadata, a->metadata, e)) < 0)
        return -1;
    if (mmds_has_unreachable_key(a->metadata))
        log_warn("The metadata has a key that no guest can ask for: it is empty, or has a blank or "
                 "a control character.");
    return 0;
}

static void on_guest_end(struct loop_source *src, uint32_t ready)
{
    struct vm *vm = owner_of(src, struct vm, guest_end);

    (void)ready;
    loop_stop(vm->loop, vm->machine->end.exit_code);
}

/* From here on the machine belongs to the loop and to its threads: what fails now can't be undone
 * and ends the process. The vCPUs are held once. */
static int set_off(struct vm *vm, struct error *e)
{
    const struct seccomp_threads *seccomp = vm->options.seccomp;
    struct machine *m = vm->machine;
    int ret;

    vm->guest_end = (struct loop_source){ m->end.event_fd, EPOLLIN, on_guest_end };
    ret = loop_add(vm->loop, &vm->guest_end);
    if (ret < 0)
        return fail_os(e, -ret, "event loop");
    if (!vm->config.serial.serial_out_path && console_has_input()) {
        if (serial_attach_input(&m->serial, vm->loop, e) < 0)
            log_error("%s", e->msg);
        else
            console_raw();
    }
    ret = capabilities_give_up(); /* the vCPUs' threads have what this one has */
    if (ret < 0)
        return fail_os(e, -ret, "cannot give up the capability that the jailer left");
    if (vcpus_start(&m->vcpus, seccomp ? seccomp->vcpu : NULL, e) < 0)
        return -1;
    ret = syslog_leave();
    if (ret < 0)
        return fail_os(e, -ret, "cannot give up the host's syslog");
    ret = seccomp ? seccomp_install(seccomp->main) : 0;
    if (ret < 0)
        return fail_os(e, -ret, "cannot install the seccomp filter");
    return 0;
}

static void report_missed_metrics(int os_errno)
{
    log_error("Failed to write metrics: %s (os error %d)", os_error_text(os_errno), os_errno);
}

static void start_metrics(struct vm *vm)
{
    struct error late;

    timeline_mark(PHASE_STARTED);
    if (metrics_start(vm->loop, report_missed_metrics, &late) < 0)
        log_error("%s", late.msg);
}

static int start(struct vm *vm, struct action *a, struct error *e)
{
    (void)a;
    timeline_mark(PHASE_INSTANCE_START);
    if (vm->opened.kernel_fd < 0)
        return fail(e, ERR_INVALID, "Cannot start microvm without kernel configuration.");
    if (machine_build(&vm->machine, &vm->config, &vm->opened, vm->options.boot_timer, vm->loop, e) <
        0)
        return -1;
    if (set_off(vm, e) < 0) {
        loop_stop(vm->loop, 1);
        return -1;
    }
    vcpus_release(&vm->machine->vcpus);
    copy_ahead_start(&vm->machine->copy_ahead, vm->loop);
    vm->state = VM_RUNNING;
    start_metrics(vm);
    return 0;
}

static void log_duration(const char *what, metric *latency, uint64_t start_us)
{
    uint64_t us = monotonic_us() - start_us;

    metric_set(latency, us);
    log_info("'%s' VMM action took %llu us.", what, (unsigned long long)us);
}

static int pause_vm(struct vm *vm, struct action *a, struct error *e)
{
    uint64_t start_us = monotonic_us();

    (void)a;
    if (vm->state == VM_RUNNING) {
        if (!machine_hold(vm->machine))
            return machine_fail_standing(vm->machine, e);
        vm->state = VM_PAUSED;
        snapshots_write_working_set(vm->machine);
    }
    log_duration("pause vm", &metrics.latencies_us.vmm_pause_vm, start_us);
    return 0;
}

static int resume_vm(struct vm *vm, struct action *a, struct error *e)
{
    uint64_t start_us = monotonic_us();

    (void)a;
    (void)e;
    if (vm->state == VM_PAUSED) {
        machine_release(vm->machine);
        vm->state = VM_RUNNING;
    }
    log_duration("resume vm", &metrics.latencies_us.vmm_resume_vm, start_us);
    return 0;
}

static void on_live_end(void *whose, const struct snapshot_created *result, struct error *e)
{
    struct vm *vm = whose;

    vm->live = NULL;
    vm->waiter->on_end(vm->waiter, result, e);
}

static int create_live(struct vm *vm, struct action *a, struct error *e)
{
    vm->live =
        live_snapshot_begin(vm->machine, &vm->config, &a->snapshot_create, on_live_end, vm, e);
    vm->waiter = a->waiter;
    return vm->live ? 1 : -1;
}

static int create_snapshot(struct vm *vm, struct action *a, struct error *e)
{
    const struct snapshot_create_config *c = &a->snapshot_create;

    if (vm->live)
        return fail(e, ERR_INVALID,
                    "Cannot save the microVM state: a live snapshot of it is being made");
    if (vm->state == VM_RUNNING && !c->live)
        return fail(e, ERR_INVALID,
                    "Cannot save the microVM state: Operation not allowed: save/restore "
                    "unavailable while running");
    if (c->type == SNAPSHOT_TYPE_DIFF)
        log_warn("Diff snapshots are in developer preview.");
    return c->live ? create_live(vm, a, e) : snapshots_create(vm->machine, &vm->config, c, e);
}

static int load_held(struct vm *vm, const struct snapshot_load_config *c, struct error *e)
{
    if (snapshots_load(&vm->machine, &vm->config, &vm->opened, c, vm->options.boot_timer, vm->loop,
                       vm->options.seccomp, e) < 0)
        return fail_within(e, "Failed to restore from snapshot");
    if (set_off(vm, e) < 0) {
        if (vm->config.vsock.uds_path) /* its file would be in the next try's way */
            vsock_unix_close(&vm->opened.vsock, vm->config.vsock.uds_path);
        return fail_within(e, "Failed to restore from snapshot");
    }
    vm->state = VM_PAUSED;
    start_metrics(vm);
    metrics_pause();
    return 0;
}

/* What can't be loaded ends the process, as clients of Firecracker expect: half of it may have been
 * made. */
static int load_snapshot(struct vm *vm, struct action *a, struct error *e)
{
    const struct snapshot_load_config *c = &a->snapshot_load;
    uint64_t start_us = monotonic_us(), us;

    if (vm->is_for_boot)
        return fail(e, ERR_INVALID,
                    "Loading a microVM snapshot not allowed after configuring boot-specific "
                    "resources.");
    if (c->working_set.path && c->backend.path && c->backend.type == MEM_BACKEND_UFFD)
        return fail(e, ERR_INVALID,
                    "A working set is for the backend File: which pages come first is the page "
                    "fault handler's to choose.");
    if (load_held(vm, c, e) < 0) {
        loop_stop(vm->loop, 1);
        return -1;
    }
    if (c->resume_vm) {
        machine_release(vm->machine);
        vm->state = VM_RUNNING;
    }
    us = monotonic_us() - start_us;
    metric_set(&metrics.latencies_us.vmm_load_snapshot, us);
    log_debug("'load snapshot' VMM action took %llu us.", (unsigned long long)us);
    return 0;
}

static int press_ctrl_alt_del(struct vm *vm, struct action *a, struct error *e)
{
    (void)a;
    return i8042_ctrl_alt_del(&vm->machine->i8042, e);
}

static int press_power_button(struct vm *vm, struct action *a, struct error *e)
{
    (void)a;
    (void)e;
    power_press(&vm->machine->power);
    return 0;
}

static int flush_metrics(struct vm *vm, struct action *a, struct error *e)
{
    int ret = metrics_write();

    (void)vm;
    (void)a;
    return ret < 0 ? fail_os(e, -ret, "Metrics error") : 0;
}

#define IN(state)    (1u << (state))
#define BEFORE_START IN(VM_NOT_STARTED)
#define AFTER_START  (IN(VM_RUNNING) | IN(VM_PAUSED))
#define FOR_BOOT     IN(VM_STATES + 1) /* no state: it configures what is booted */

/* In other states it would be a hot-plug: for that, a device comes or goes on a bus that can tell
 * the guest so, which virtio-mmio is not. */
#define ELSE_HOTPLUG IN(VM_STATES)

/* What each action is, and the states in which it is allowed. */
static const struct rule {
    unsigned allowed_in;
    int (*apply)(struct vm *vm, struct action *a, struct error *e);
} rules[ACTIONS] = {
    [ACT_PUT_LOGGER] = { BEFORE_START, put_logger },
    [ACT_PUT_METRICS] = { BEFORE_START, put_metrics },
    [ACT_PUT_MACHINE] = { BEFORE_START | FOR_BOOT, put_machine },
    [ACT_PUT_CPU_CONFIG] = { BEFORE_START, put_cpu_config },
    [ACT_PUT_BOOT_SOURCE] = { BEFORE_START | FOR_BOOT, put_boot_source },
    [ACT_PUT_DRIVE] = { BEFORE_START | ELSE_HOTPLUG | FOR_BOOT, put_drives },
    [ACT_PUT_NET] = { BEFORE_START | ELSE_HOTPLUG | FOR_BOOT, put_interfaces },
    [ACT_PUT_VSOCK] = { BEFORE_START | FOR_BOOT, put_vsock },
    [ACT_PUT_SMBIOS] = { BEFORE_START | FOR_BOOT, put_smbios },
    [ACT_PUT_SERIAL] = { BEFORE_START, put_serial },
    [ACT_PUT_MMDS_CONFIG] = { BEFORE_START | FOR_BOOT, put_mmds_config },
    [ACT_PUT_MMDS] = { BEFORE_START | AFTER_START, change_metadata },
    [ACT_PATCH_MMDS] = { BEFORE_START | AFTER_START, change_metadata },
    [ACT_PATCH_MACHINE] = { BEFORE_START | FOR_BOOT, put_machine },
    [ACT_PATCH_DRIVE] = { AFTER_START, patch_drive },
    [ACT_PATCH_NET] = { AFTER_START, patch_net },
    [ACT_DELETE_DEVICE] = { ELSE_HOTPLUG, NULL },
    [ACT_START] = { BEFORE_START, start },
    [ACT_CTRL_ALT_DEL] = { AFTER_START, press_ctrl_alt_del },
    [ACT_POWER_BUTTON] = { AFTER_START, press_power_button },
    [ACT_FLUSH_METRICS] = { AFTER_START, flush_metrics },
    [ACT_PAUSE] = { AFTER_START, pause_vm },
    [ACT_RESUME] = { AFTER_START, resume_vm },
    [ACT_SNAPSHOT_CREATE] = { AFTER_START, create_snapshot },
    [ACT_SNAPSHOT_LOAD] = { BEFORE_START, load_snapshot },
};

int vm_apply(struct vm *vm, struct action *a, struct error *e)
{
    const struct rule *r = &rules[a->kind];

    if (r->allowed_in & IN(vm->state)) {
        vm->is_for_boot |= (r->allowed_in & FOR_BOOT) != 0; /* also where it is refused now */
        return r->apply(vm, a, e);
    }
    if (r->allowed_in & ELSE_HOTPLUG && vm->state != VM_NOT_STARTED)
        return fail(e, ERR_STATE, "PCI is not enabled");
    return fail(e, ERR_STATE, "The requested operation is not supported %s the microVM.",
                vm->state == VM_NOT_STARTED ? "before starting" : "after starting");
}

/* A PUT of the machine starts from the defaults, but a template that is not mentioned stays. */
void action_init(struct action *a, enum action_kind kind, const struct vm *vm)
{
    const struct log_options log = log_get_options();

    *a = (struct action){ .kind = kind, .config.machine = machine_config_default };
    if (kind == ACT_PATCH_MACHINE)
        a->config.machine = vm->config.machine;
    a->config.machine.cpu_template = vm->config.machine.cpu_template;
    a->config.logger = (struct logger_config){
        .level = LOG_INFO,
        .show_level = log.show_level,
        .show_origin = log.show_origin,
    };
    a->snapshot_create.sync = true;
}

void action_fini(struct action *a)
{
    vm_config_fini(&a->config);
    drive_patch_fini(&a->drive_patch);
    net_patch_fini(&a->net_patch);
    free(a->metadata);
    a->metadata = NULL;
    snapshot_create_config_fini(&a->snapshot_create);
    snapshot_load_config_fini(&a->snapshot_load);
}

void vm_stop(struct vm *vm)
{
    console_cooked();
    if (!vm->machine)
        return;
    if (vm->live)
        live_snapshot_abort(vm->live, "The microVM has ended before its live snapshot");
    if (machine_hold(vm->machine))
        snapshots_write_working_set(vm->machine);
    for (unsigned i = 0; i < vm->config.drives.count; i++) {
        const struct drive_config *d = &vm->config.drives.items[i];
        const struct block_file *file = &vm->opened.drives[i].file;
        int ret = d->cache_type == CACHE_WRITEBACK || file->overlay ? block_file_sync(file) : 0;

        if (ret)
            log_error("Drive %s: cannot sync: %s", d->drive_id, os_error_text(-ret));
    }
}

void vm_free(struct vm *vm)
{
    struct log_options log = log_get_options();

    if (vm->config.logger.module) {
        log.module = NULL;
        log_set_options(log);
    }
    drives_close(vm->opened.drives, vm->config.drives.count);
    interfaces_close(vm->opened.interfaces, vm->config.interfaces.count);
    close_fdp(&vm->opened.kernel_fd);
    close_fdp(&vm->opened.initrd_fd);
    close_fdp(&vm->opened.vsock.fd);
    kvm_close(&vm->opened.kvm);
    vm_config_fini(&vm->config);
    mmds_store_fini(&vm->metadata);
    free(vm);
}

void vm_close(struct vm *vm)
{
    if (vm->machine)
        machine_close_kvm(vm->machine);
    kvm_close(&vm->opened.kvm);
}

const char *vm_id(const struct vm *vm)
{
    return vm->options.id;
}

enum vm_state vm_state(const struct vm *vm)
{
    return vm->state;
}

const struct vm_config *vm_config(const struct vm *vm)
{
    return &vm->config;
}
