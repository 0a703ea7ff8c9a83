/* What KVM is asked for, and what becomes of each refusal. KVM is played. */
#include "vmm/kvm/kvm.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/kvm/layout.h"

#define CALLS_MAX 64
#define KVM_FD    1000
#define VM_FD     1001
#define NOTHING   UINT32_MAX

static struct {
    int fd;
    unsigned long request;
    unsigned long argument;
    union {
        struct kvm_userspace_memory_region region;
        struct kvm_pit_config pit;
        struct kvm_irq_level level;
        struct kvm_ioeventfd ioeventfd;
    } given;
} calls[CALLS_MAX];
static unsigned call_count;
static unsigned long refused;      /* the request that fails, with EPERM */
static unsigned interruptions;     /* of what makes a VM, before that */
static unsigned lacking = NOTHING; /* the capability that is not there */
static int version = KVM_API_VERSION;

int ioctl(int fd, unsigned long request, ...)
{
    unsigned long argument;
    va_list ap;

    va_start(ap, request);
    argument = va_arg(ap, unsigned long);
    va_end(ap);
    if (_IOC_TYPE(request) != KVMIO)
        return (int)syscall(SYS_ioctl, fd, request, argument);
    cr_assert_lt(call_count, CALLS_MAX);
    calls[call_count].fd = fd;
    calls[call_count].request = request;
    calls[call_count].argument = argument;
    if (_IOC_DIR(request) & _IOC_WRITE)
        memcpy(&calls[call_count].given, (void *)argument, _IOC_SIZE(request));
    call_count++;
    errno = request == refused ? EPERM : EINTR;
    if (request == refused || (request == KVM_CREATE_VM && interruptions && interruptions--))
        return -1;
    switch (request) {
    case KVM_GET_API_VERSION: return version;
    case KVM_CHECK_EXTENSION: return argument != lacking;
    case KVM_GET_VCPU_MMAP_SIZE: return 12288;
    case KVM_CREATE_VM: return dup(fd);
    default: return 0;
    }
}

static struct error e;
static const struct kvm kvm = { .kvm_fd = KVM_FD, .vm_fd = VM_FD };

Test(kvm_add_memory, is_a_slot_a_region)
{
    struct guest_mem mem;

    cr_assert_eq(gmem_init(&mem, 4096, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(mem.region_count, 2);
    cr_assert_eq(kvm_add_memory(&kvm, &mem, true, &e), 0, "%s", e.msg);
    cr_assert_eq(call_count, 3);
    for (unsigned i = 0; i < 2; i++) {
        const unsigned call = 1 + i; /* how a log is read comes first */
        const struct kvm_userspace_memory_region *slot = &calls[call].given.region;

        cr_expect_eq(calls[call].fd, VM_FD);
        cr_expect_eq(calls[call].request, KVM_SET_USER_MEMORY_REGION);
        cr_expect_eq(slot->slot, i);
        cr_expect_eq(slot->flags, KVM_MEM_LOG_DIRTY_PAGES);
        cr_expect_eq(slot->guest_phys_addr, mem.regions[i].start);
        cr_expect_eq(slot->memory_size, mem.regions[i].bytes);
        cr_expect_eq(slot->userspace_addr,
                     (uintptr_t)gmem_host_(&mem, gpa(mem.regions[i].start), 1));
    }
    call_count = 0;
    cr_assert_eq(kvm_add_memory(&kvm, &mem, false, &e), 0, "%s", e.msg);
    cr_assert_eq(call_count, 3);
    cr_expect_eq(calls[2].given.region.flags, 0);
    refused = KVM_SET_USER_MEMORY_REGION;
    cr_expect_eq(kvm_add_memory(&kvm, &mem, false, &e), -1);
    cr_expect_str_eq(e.msg, "cannot give KVM 3221225472 bytes of guest memory at 0x0: Operation "
                            "not permitted (os error 1)");
    gmem_fini(&mem);
}

Test(kvm_add_readable, is_a_slot_behind_those_of_memory)
{
    static const char page[4096];
    const struct kvm_userspace_memory_region *slot = &calls[1].given.region;

    cr_assert_eq(kvm_add_readable(&kvm, gpa(0xc0001000), page, sizeof(page), &e), 0, "%s", e.msg);
    cr_assert_eq(call_count, 2);
    cr_expect_eq(calls[1].fd, VM_FD);
    cr_expect_eq(slot->slot, GMEM_REGIONS_MAX);
    cr_expect_eq(slot->flags, KVM_MEM_READONLY);
    cr_expect_eq(slot->guest_phys_addr, 0xc0001000);
    cr_expect_eq(slot->memory_size, sizeof(page));
    cr_expect_eq(slot->userspace_addr, (uintptr_t)page);
    refused = KVM_SET_USER_MEMORY_REGION;
    cr_expect_eq(kvm_add_readable(&kvm, gpa(0xc0001000), page, sizeof(page), &e), -1);
    cr_expect_str_eq(e.msg, "cannot let the guest read 4096 bytes at 0xc0001000: Operation not "
                            "permitted (os error 1)");
}

Test(kvm_add_readable, does_nothing_where_that_cannot_be)
{
    static const char page[4096];

    lacking = KVM_CAP_READONLY_MEM;
    cr_expect_eq(kvm_add_readable(&kvm, gpa(0xc0001000), page, sizeof(page), &e), 0, "%s", e.msg);
    cr_expect_eq(call_count, 1, "but ask");
}

Test(kvm_create_irqchip, makes_its_parts_in_order_and_names_the_one_that_fails)
{
    static const struct {
        unsigned long request;
        const char *text;
    } parts[] = {
        { KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR: Operation not permitted (os error 1)" },
        { KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP: Operation not permitted (os error 1)" },
        { KVM_CREATE_PIT2, "KVM_CREATE_PIT2: Operation not permitted (os error 1)" },
    };

    cr_assert_eq(kvm_create_irqchip(&kvm, &e), 0, "%s", e.msg);
    cr_assert_eq(call_count, 3);
    cr_expect_eq(calls[0].argument, LAYOUT_KVM_TSS);
    cr_expect_eq(calls[2].given.pit.flags, KVM_PIT_SPEAKER_DUMMY);
    for (unsigned i = 0; i < 3; i++) {
        cr_expect_eq(calls[i].fd, VM_FD);
        cr_expect_eq(calls[i].request, parts[i].request);
    }
    for (unsigned i = 0; i < 3; i++) {
        refused = parts[i].request;
        cr_expect_eq(kvm_create_irqchip(&kvm, &e), -1);
        cr_expect_str_eq(e.msg, parts[i].text);
    }
}

Test(kvm_pulse, is_one_edge)
{
    kvm_pulse(&(struct kvm_line){ VM_FD, 9 });
    cr_assert_eq(call_count, 2);
    for (unsigned i = 0; i < 2; i++) {
        cr_expect_eq(calls[i].fd, VM_FD);
        cr_expect_eq(calls[i].request, KVM_IRQ_LINE);
        cr_expect_eq(calls[i].given.level.irq, 9);
        cr_expect_eq(calls[i].given.level.level, 1 - i);
    }
}

Test(kvm_add_ioeventfd, counts_one_value_of_32_bits)
{
    const struct kvm_ioeventfd *given = &calls[0].given.ioeventfd;

    cr_assert_eq(kvm_add_ioeventfd(&kvm, 77, gpa(0xc0001050), 2, &e), 0, "%s", e.msg);
    cr_expect_eq(calls[0].fd, VM_FD);
    cr_expect_eq(given->datamatch, 2);
    cr_expect_eq(given->addr, 0xc0001050);
    cr_expect_eq(given->len, 4);
    cr_expect_eq(given->fd, 77);
    cr_expect_eq(given->flags, KVM_IOEVENTFD_FLAG_DATAMATCH);
    refused = KVM_IOEVENTFD;
    cr_expect_eq(kvm_add_ioeventfd(&kvm, 77, gpa(0xc0001050), 2, &e), -1);
    cr_expect_str_eq(e.msg, "KVM_IOEVENTFD at 0xc0001050: Operation not permitted (os error 1)");
}

static void need_device(void)
{
    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
}

TestSuite(kvm_open, .init = need_device);

Test(kvm_open, is_tried_again_when_a_signal_comes)
{
    struct kvm opened;

    interruptions = 3;
    cr_assert_eq(kvm_open(&opened, NULL, &e), 0, "%s", e.msg);
    cr_expect_eq(opened.run_bytes, 12288);
    cr_expect(opened.kvm_fd > 2 && opened.vm_fd > 2 && opened.kvm_fd != opened.vm_fd);
    kvm_close(&opened);
    cr_expect_eq(opened.kvm_fd, -1);
    cr_expect_eq(opened.vm_fd, -1);
}

/* And leaves nothing open. */
static void expect_refusal(const struct cpu_config *template, const char *text)
{
    const int next = dup(0);
    struct kvm opened;

    close(next);
    cr_expect_eq(kvm_open(&opened, template, &e), -1);
    cr_expect_str_eq(e.msg, text);
    cr_expect_eq(opened.kvm_fd, -1);
    cr_expect_eq(opened.vm_fd, -1);
    cr_expect_eq(dup(0), next);
    close(next);
}

Test(kvm_open, names_what_the_host_lacks)
{
    lacking = KVM_CAP_IMMEDIATE_EXIT;
    expect_refusal(NULL, "KVM on this host lacks the capability KVM_CAP_IMMEDIATE_EXIT (136)");
    lacking = NOTHING;
    version = 13;
    expect_refusal(NULL, "/dev/kvm speaks API version 13, version 12 is needed");
    version = KVM_API_VERSION;
    refused = KVM_GET_VCPU_MMAP_SIZE;
    expect_refusal(NULL, "KVM_GET_VCPU_MMAP_SIZE: Operation not permitted (os error 1)");
    refused = KVM_CREATE_VM;
    expect_refusal(NULL, "cannot create a KVM virtual machine: Operation not permitted (os error "
                         "1)");
}

Test(kvm_open, needs_what_a_template_adds_and_not_what_it_drops)
{
    struct kvm_capability capabilities[] = { { 121, false }, { KVM_CAP_XCRS, true } };
    const struct cpu_config template = { .capabilities = capabilities, .capability_count = 2 };
    struct kvm opened;

    lacking = KVM_CAP_XCRS;
    cr_assert_eq(kvm_open(&opened, &template, &e), 0, "%s", e.msg);
    kvm_close(&opened);
    lacking = 121;
    call_count = 0;
    expect_refusal(&template, "KVM on this host lacks the capability 121 that the CPU template "
                              "needs");
    call_count = 0;
    lacking = KVM_CAP_XCRS;
    capabilities[1].is_dropped = false;
    expect_refusal(&template, "KVM on this host lacks the capability KVM_CAP_XCRS (56)");
}
