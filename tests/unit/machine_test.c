#include "vmm/machine/machine.h"

#include <criterion/criterion.h>
#include <linux/virtio_mmio.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include "vmm/boot/registers.h"

#define CODE 0x8000u
#define PORT 0x600u

/* A machine of one vCPU, whose guest writes to a port for ever, a console that has input, and one
 * device that looks at the rest when it is drained. */
static struct machine *m;
static struct loop loop;
static struct error e;
static uint32_t registers[LAYOUT_VIRTIO_STEP / sizeof(uint32_t)];
static unsigned drains;
static atomic_uint runs, runs_held;
static int ran; /* an eventfd */

static void port_write(struct bus_device *d, uint64_t offset, const uint8_t *data, unsigned bytes)
{
    (void)d, (void)offset, (void)data, (void)bytes;
    if (m->transports[0].is_paused || m->serial.is_paused)
        runs_held++;
    if (runs++ == 0)
        loop_signal(ran);
}

static const struct bus_ops port_ops = { .write = port_write };
static struct bus_device port = { &port_ops, PORT, 1 };

static void device_activate(struct virtio_device *d)
{
    (void)d;
}

static void device_drain(struct virtio_device *d)
{
    (void)d;
    drains++;
    cr_expect_eq(m->vcpus.standing, 1, "the guest runs while its devices are drained");
    cr_expect(m->serial.is_watching, "a drain may wait; the console is held after it");
}

static const struct virtio_ops device_ops = {
    .name = "test", .queue_count = 1, .activate = device_activate, .drain = device_drain
};
static const uint8_t config[4];
static struct virtio_device device = { .ops = &device_ops,
                                       .config = config,
                                       .config_bytes = sizeof(config),
                                       .offered = UINT64_C(1) << VIRTIO_F_VERSION_1 };

static void write_register(uint64_t offset, uint32_t value)
{
    struct bus_device *b = &m->transports[0].bus;

    b->ops->write(b, offset, (const uint8_t *)&value, sizeof(value));
}

/* As a driver does: only a device that has one is drained. */
static void add_device(void)
{
    m->platform.virtio_count = 1;
    cr_assert_eq(virtio_mmio_init(&m->transports[0], &device, gpa(LAYOUT_VIRTIO), registers,
                                  &m->mem, &loop, &e),
                 0, "%s", e.msg);
    write_register(VIRTIO_MMIO_STATUS, 1);
    write_register(VIRTIO_MMIO_STATUS, 3);
    write_register(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    write_register(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    write_register(VIRTIO_MMIO_STATUS, 11);
    write_register(VIRTIO_MMIO_STATUS, 15);
}

static void add_console(void)
{
    int input[2];

    cr_assert_eq(pipe(input), 0);
    cr_assert_eq(dup2(input[0], STDIN_FILENO), STDIN_FILENO);
    serial_init(&m->serial, (struct kvm_line){ m->kvm.vm_fd, GSI_SERIAL }, STDOUT_FILENO);
    cr_assert_eq(serial_attach_input(&m->serial, &loop, &e), 0, "%s", e.msg);
}

static void set_up(void)
{
    static const uint8_t out_for_ever[] = { 0xee, 0xeb, 0xfd };
    const struct kernel_image kernel = { .protocol = BOOT_PVH, .entry = { CODE } };
    struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rdx = PORT };
    struct kvm_sregs sregs;

    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
    m = calloc(1, sizeof(*m));
    ran = eventfd(0, EFD_CLOEXEC);
    cr_assert_eq(loop_init(&loop, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_init(&m->mem, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_put(&m->mem, gpa(CODE), &out_for_ever), 0);
    cr_assert_eq(kvm_open(&m->kvm, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_add_memory(&m->kvm, &m->mem, false, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_create_irqchip(&m->kvm, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpus_create(&m->vcpus, &m->kvm, 1, &m->pio, &m->mmio, &m->end, &e), 0, "%s",
                 e.msg);
    cr_assert_eq(vcpus_reset(&m->vcpus, false, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(boot_registers_set(&m->vcpus.each[0], &kernel, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpu_get_sregs(&m->vcpus.each[0], &sregs, &e), 0, "%s", e.msg);
    cr_assert_eq(vcpu_set_registers(&m->vcpus.each[0], &regs, &sregs, &e), 0, "%s", e.msg);
    bus_add(&m->pio, &port);
    add_device();
    add_console();
    cr_assert_eq(vcpus_start(&m->vcpus, NULL, &e), 0, "%s", e.msg);
    vcpus_release(&m->vcpus);
}

TestSuite(machine_hold, .init = set_up);

/* The guest has run since the last look. */
static void expect_running(void)
{
    uint64_t count;

    runs = 0;
    cr_assert_eq(read(ran, &count, sizeof(count)), sizeof(count));
    cr_expect_not(m->transports[0].is_paused);
    cr_expect(m->serial.is_watching);
}

static void expect_held(void)
{
    unsigned before = runs;

    cr_expect_eq(m->vcpus.standing, 1);
    cr_expect(m->transports[0].is_paused);
    cr_expect_not(m->serial.is_watching);
    cr_expect_eq(runs, before);
}

Test(machine_hold, stops_the_guest_before_its_devices_and_starts_them_before_it)
{
    for (unsigned i = 1; i <= 200; i++) {
        expect_running();
        machine_hold(m);
        expect_held();
        cr_expect_eq(drains, i);
        machine_release(m);
    }
    expect_running();
    machine_hold(m);
    cr_expect_eq(runs_held, 0, "the guest ran %u times while its devices were held", runs_held);
}

Test(machine_hold, lasts_until_each_holder_has_released_it)
{
    expect_running();
    machine_hold(m);
    machine_hold(m);
    vcpus_hold(&m->vcpus);
    machine_hold(m);
    cr_expect_eq(drains, 1, "there is nothing to drain in a held machine");
    machine_release(m);
    expect_held();
    machine_release(m);
    expect_held();
    machine_release(m); /* of the machine the last, but not of the vCPUs */
    cr_expect_eq(m->vcpus.standing, 1);
    cr_expect_not(m->transports[0].is_paused);
    vcpus_release(&m->vcpus);
    expect_running();
    machine_hold(m);
    cr_expect_eq(drains, 2);
}
