#include "vmm/kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "vmm/kvm/layout.h"

static const struct {
    unsigned number;
    const char *name;
} needed[] = {
    { KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP" },
    { KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD" },
    { KVM_CAP_IRQFD, "KVM_CAP_IRQFD" },
    { KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY" },
    { KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR" },
    { KVM_CAP_PIT2, "KVM_CAP_PIT2" },
    { KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2" },
    { KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK" },
    { KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS" },
    { KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE" },
    { KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS" },
    { KVM_CAP_XCRS, "KVM_CAP_XCRS" },
    { KVM_CAP_XSAVE, "KVM_CAP_XSAVE" },
    { KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID" },
    { KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT" },
};

static bool is_dropped(const struct cpu_config *template, unsigned number)
{
    for (size_t i = 0; template && i < template->capability_count; i++)
        if (template->capabilities[i].number == number && template->capabilities[i].is_dropped)
            return true;
    return false;
}

static int check_capabilities(int kvm_fd, const struct cpu_config *template, struct error *e)
{
    int version = ioctl(kvm_fd, KVM_GET_API_VERSION, 0);

    if (version < 0)
        return fail_os(e, errno, "/dev/kvm is not a KVM device");
    if (version != KVM_API_VERSION)
        return fail(e, ERR_HOST, "/dev/kvm speaks API version %d, version %d is needed", version,
                    KVM_API_VERSION);
    for (unsigned i = 0; i < sizeof(needed) / sizeof(*needed); i++)
        if (!is_dropped(template, needed[i].number) &&
            ioctl(kvm_fd, KVM_CHECK_EXTENSION, needed[i].number) <= 0)
            return fail(e, ERR_HOST, "KVM on this host lacks the capability %s (%u)",
                        needed[i].name, needed[i].number);
    for (size_t i = 0; template && i < template->capability_count; i++)
        if (!template->capabilities[i].is_dropped &&
            ioctl(kvm_fd, KVM_CHECK_EXTENSION, template->capabilities[i].number) <= 0)
            return fail(e, ERR_HOST,
                        "KVM on this host lacks the capability %u that the CPU template needs",
                        template->capabilities[i].number);
    return 0;
}

static int create_vm(int kvm_fd)
{
    int fd;

    do
        fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
    while (fd < 0 && errno == EINTR);
    return fd;
}

int kvm_open(struct kvm *k, const struct cpu_config *template, struct error *e)
{
    autofd int kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    autofd int vm_fd = -1;
    int run_bytes;

    *k = KVM_NONE;
    if (kvm_fd < 0)
        return fail_os(e, errno, "cannot open /dev/kvm%s",
                       errno == ENOENT   ? " (no KVM module is loaded on this host)"
                       : errno == EACCES ? " (the user needs read and write permission)"
                                         : "");
    if (check_capabilities(kvm_fd, template, e) < 0)
        return -1;
    run_bytes = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_bytes < 0)
        return fail_os(e, errno, "KVM_GET_VCPU_MMAP_SIZE");
    vm_fd = create_vm(kvm_fd);
    if (vm_fd < 0)
        return fail_os(e, errno, "cannot create a KVM virtual machine");
    k->kvm_fd = take_fd(&kvm_fd);
    k->vm_fd = take_fd(&vm_fd);
    k->run_bytes = (size_t)run_bytes;
    return 0;
}

void kvm_close(struct kvm *k)
{
    close_fdp(&k->vm_fd);
    close_fdp(&k->kvm_fd);
    *k = KVM_NONE;
}

/* Linux 5.2: to read the log does not empty it. */
static int keep_log(const struct kvm *k, struct error *e)
{
    const struct kvm_enable_cap cap = {
        .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        .args = { KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE },
    };

    if (ioctl(k->vm_fd, KVM_ENABLE_CAP, &cap) < 0)
        return fail_os(e, errno, "KVM cannot keep a log of the pages that change");
    return 0;
}

int kvm_track_dirty(const struct kvm *k, const struct guest_mem *m, bool on, struct error *e)
{
    for (unsigned i = 0; i < m->region_count; i++) {
        const struct gmem_region *r = &m->regions[i];
        struct kvm_userspace_memory_region slot = {
            .slot = i,
            .flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0,
            .guest_phys_addr = r->start,
            .memory_size = r->bytes,
            .userspace_addr = (uintptr_t)gmem_host_(m, gpa(r->start), r->bytes),
        };

        if (ioctl(k->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
            return fail_os(e, errno, "cannot give KVM %llu bytes of guest memory at 0x%llx",
                           (unsigned long long)r->bytes, (unsigned long long)r->start);
    }
    return 0;
}

/* How the log is read is said at once: a guest that runs may have one for a while, and is not to
 * need more of KVM for that. */
int kvm_add_memory(const struct kvm *k, const struct guest_mem *m, bool track_dirty,
                   struct error *e)
{
    return keep_log(k, e) < 0 ? -1 : kvm_track_dirty(k, m, track_dirty, e);
}

// NOLINTNEXTLINE(readability-non-const-parameter): the kernel writes it
int kvm_get_dirty(const struct kvm *k, const struct guest_mem *m, uint64_t *words, struct error *e)
{
    for (unsigned i = 0; i < m->region_count; i++) {
        struct kvm_dirty_log log = { .slot = i, .dirty_bitmap = words };

        if (ioctl(k->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0)
            return fail_os(e, errno, "KVM_GET_DIRTY_LOG");
        words += m->regions[i].bytes / GMEM_PAGE_BYTES / 64;
    }
    return 0;
}

int kvm_clear_dirty(const struct kvm *k, const struct guest_mem *m, const uint64_t *words,
                    struct error *e)
{
    for (unsigned i = 0; i < m->region_count; i++) {
        struct kvm_clear_dirty_log log = {
            .slot = i,
            .num_pages = (uint32_t)(m->regions[i].bytes / GMEM_PAGE_BYTES),
            .dirty_bitmap = (void *)words,
        };

        if (ioctl(k->vm_fd, KVM_CLEAR_DIRTY_LOG, &log) < 0)
            return fail_os(e, errno, "KVM_CLEAR_DIRTY_LOG");
        words += log.num_pages / 64;
    }
    return 0;
}

int kvm_add_readable(const struct kvm *k, gpa_t at, const void *host, size_t bytes, struct error *e)
{
    const struct kvm_userspace_memory_region slot = {
        .slot = GMEM_REGIONS_MAX,
        .flags = KVM_MEM_READONLY,
        .guest_phys_addr = at.v,
        .memory_size = bytes,
        .userspace_addr = (uintptr_t)host,
    };

    if (ioctl(k->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_READONLY_MEM) <= 0)
        return 0;
    if (ioctl(k->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
        return fail_os(e, errno, "cannot let the guest read %zu bytes at 0x%llx", bytes,
                       (unsigned long long)at.v);
    return 0;
}

int kvm_create_irqchip(const struct kvm *k, struct error *e)
{
    /* The speaker's port is answered in the kernel: guests poll it to calibrate their clocks. */
    struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };

    if (ioctl(k->vm_fd, KVM_SET_TSS_ADDR, LAYOUT_KVM_TSS) < 0)
        return fail_os(e, errno, "KVM_SET_TSS_ADDR");
    if (ioctl(k->vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
        return fail_os(e, errno, "KVM_CREATE_IRQCHIP");
    if (ioctl(k->vm_fd, KVM_CREATE_PIT2, &pit) < 0)
        return fail_os(e, errno, "KVM_CREATE_PIT2");
    return 0;
}

void kvm_pulse(const struct kvm_line *line)
{
    struct kvm_irq_level level = { .irq = line->gsi, .level = 1 };

    BUG_ON(ioctl(line->vm_fd, KVM_IRQ_LINE, &level) < 0);
    level.level = 0;
    BUG_ON(ioctl(line->vm_fd, KVM_IRQ_LINE, &level) < 0);
}

int kvm_add_ioeventfd(const struct kvm *k, int fd, gpa_t at, uint32_t value, struct error *e)
{
    struct kvm_ioeventfd ioeventfd = {
        .datamatch = value,
        .addr = at.v,
        .len = sizeof(value),
        .fd = fd,
        .flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
    };

    if (ioctl(k->vm_fd, KVM_IOEVENTFD, &ioeventfd) < 0)
        return fail_os(e, errno, "KVM_IOEVENTFD at 0x%llx", (unsigned long long)at.v);
    return 0;
}
