/* A machine's state as a file, without KVM: what comes back, and what becomes of files that lie. */
#include "vmm/machine/saved.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/state_file.h"
#include "vmm/snapshot/files.h"

static struct error e;

static char *text(const char *s)
{
    return strdup(s);
}

static void configure(struct vm_config *c)
{
    c->machine = (struct machine_config){ .vcpu_count = 2, .mem_size_mib = 64 };
    c->boot_source.kernel_image_path = text("/kernel");
    c->smbios.uuid = text("ec2e1916-9099-7caf-fd21-012345abcdef");
    c->drives.count = 2;
    c->drives.items = calloc(2, sizeof(*c->drives.items));
    c->drives.items[0] = (struct drive_config){ .drive_id = text("root"),
                                                .path_on_host = text("/disk"),
                                                .is_root_device = true };
    c->drives.items[1] =
        (struct drive_config){ .drive_id = text("data"),
                               .path_on_host = text("/more"),
                               .io_engine = IO_ENGINE_ASYNC,
                               .rate_limits = { .has_ops = true, .ops = { 9, 8, 7 } } };
    c->interfaces.count = 1;
    c->interfaces.items = calloc(1, sizeof(*c->interfaces.items));
    c->interfaces.items[0] = (struct net_config){ .iface_id = text("eth0"),
                                                  .host_dev_name = text("tap0"),
                                                  .guest_mac = text("06:00:ac:10:00:02"),
                                                  .has_mtu = true,
                                                  .mtu = 1400 };
    c->mmds = (struct mmds_config){ .version = MMDS_V2,
                                    .interfaces = { calloc(1, sizeof(char *)), 1 },
                                    .ipv4_address = text("169.254.169.254") };
    c->mmds.interfaces.items[0] = text("eth0");
    c->vsock = (struct vsock_config){ .guest_cid = 3, .uds_path = text("/v") };
}

/* What format 1.1 added. */
static void add_overlay(struct drive_config *d)
{
    d->overlay_path = text("/top");
    d->layers = (struct text_list){ calloc(2, sizeof(char *)), 2 };
    d->layers.items[0] = text("/low");
    d->layers.items[1] = text("/high");
}

static struct saved *make(void)
{
    struct saved *s = saved_new();

    memcpy(s->name.bytes, "0123456789abcdef", sizeof(s->name.bytes));
    s->wall_ns = 77;
    configure(&s->config);
    add_overlay(&s->config.drives.items[1]);
    s->blocks[1].limiter.ops = (struct bucket){ .burst = 3, .missing = (__int128)5 << 64 | 4 };
    s->blocks[1].transport.queues[0] =
        (struct virtq_state){ .size = 256, .ready = true, .desc = { 0x1000 }, .next_avail = 9 };
    s->vsock.last_port = 1234;
    s->vcpu_count = 2;
    s->vcpus = calloc(2, sizeof(*s->vcpus));
    for (unsigned i = 0; i < 2; i++) {
        s->vcpus[i].cpuid.nent = 1;
        s->vcpus[i].cpuid.entries[0].eax = 0xd;
        s->vcpus[i].regs.rip = 0x1000 + i;
        s->vcpus[i].xsave[100] = 5;
        s->vcpus[i].msr_count = 1;
        s->vcpus[i].msrs[0] = (struct kvm_msr_entry){ .index = 0x174, .data = 6 };
    }
    s->kvm.clock.clock = 99;
    s->serial =
        (struct serial_state){ .ier = 2, .fifo = { 1, 2 }, .fifo_head = 63, .fifo_count = 3 };
    s->i8042.command_byte = 0x21;
    return s;
}

static void drop(struct saved *s)
{
    vm_config_fini(&s->config);
    saved_free(s);
}

static struct file {
    uint8_t *bytes;
    size_t n;
} encode(struct saved *s)
{
    struct file f;

    cr_assert_eq(saved_encode(s, &f.bytes, &f.n, &e), 0, "%s", e.msg);
    return f;
}

static int decode(const struct file *f, struct saved *s)
{
    e.msg[0] = '\0';
    return saved_decode(s, f->bytes, f->n, &e);
}

Test(saved, comes_back_as_it_was)
{
    struct saved *s = make(), *back = saved_new();
    struct file f = encode(s), again;

    cr_assert_eq(decode(&f, back), 0, "%s", e.msg);
    cr_expect_str_eq(back->config.interfaces.items[0].guest_mac, "06:00:ac:10:00:02");
    cr_expect_null(back->config.drives.items[0].partuuid);
    cr_expect(back->blocks[1].limiter.ops.missing == s->blocks[1].limiter.ops.missing);
    cr_expect_eq(back->vcpus[1].regs.rip, 0x1001);
    cr_expect_eq(back->vcpus[1].xsave[100], 5);
    again = encode(back);
    cr_expect(again.n == f.n && memcmp(again.bytes, f.bytes, f.n) == 0, "all of it");
    free(again.bytes);
    free(f.bytes);
    drop(back);
    drop(s);
}

Test(saved, has_layers_and_no_overlay_where_a_drive_is_frozen)
{
    struct saved *s = make(), *back = saved_new();
    struct file f;

    s->config.drives.items[1].is_frozen = true;
    f = encode(s);
    cr_assert_eq(decode(&f, back), 0, "%s", e.msg);
    cr_expect_null(back->config.drives.items[1].overlay_path);
    cr_expect(back->config.drives.items[1].is_frozen);
    cr_expect_eq(back->config.drives.items[1].layers.count, 2);
    cr_expect_not(back->config.drives.items[0].is_frozen);
    free(f.bytes);
    drop(back);
    drop(s);
}

/* One file of each version of the format, of what make() has, is kept in kept/ for good. A change
 * of the format has another version (format.h) and another file:
 *     MAYFLY_KEEP=tests/unit/kept/state-1.1 build/sanitize/tests/saved_test
 * and reads the older ones, to which it gives what they lack. */
static const char *const versions[] = { KEPT "/state-1.0", KEPT "/state-1.1" };
#define VERSIONS (sizeof(versions) / sizeof(*versions))

static struct file read_kept(const char *path)
{
    struct file f;

    cr_assert_eq(snapshot_files_read_state(path, &f.bytes, &f.n, &e), 0, "%s: %s", path, e.msg);
    return f;
}

/* The version of mayfly that wrote it, and so the header's sum, are not the format's. */
static void hide_writer(struct file *f)
{
    memset(f->bytes + 16, 0, SNAPSHOT_WRITER_BYTES);
    memset(f->bytes + 60, 0, 4);
}

Test(saved, is_the_same_file_unless_the_version_changes)
{
    const char *path = getenv("MAYFLY_KEEP");
    struct saved *s = make();
    struct file now = encode(s), then;

    if (path) {
        FILE *to = fopen(path, "wb");

        cr_assert(to && fwrite(now.bytes, 1, now.n, to) == now.n && fclose(to) == 0, "%s", path);
    }
    then = read_kept(versions[VERSIONS - 1]);
    hide_writer(&now);
    hide_writer(&then);
    cr_expect_eq(now.n, then.n);
    for (size_t i = 0; i < now.n && i < then.n; i++)
        cr_assert_eq(now.bytes[i], then.bytes[i], "at offset %zu", i);
    free(then.bytes);
    free(now.bytes);
    drop(s);
}

Test(saved, is_read_from_each_version_that_there_was)
{
    struct saved *s = make();
    struct file f = encode(s);

    for (size_t i = 0; i < VERSIONS; i++) {
        struct file old = read_kept(versions[i]), again;
        struct saved *back = saved_new();

        cr_assert_eq(decode(&old, back), 0, "%s: %s", versions[i], e.msg);
        if (!back->config.drives.items[1].overlay_path)
            add_overlay(&back->config.drives.items[1]);
        again = encode(back);
        cr_expect(again.n == f.n && memcmp(again.bytes, f.bytes, f.n) == 0, "%s", versions[i]);
        free(again.bytes);
        free(old.bytes);
        drop(back);
    }
    free(f.bytes);
    drop(s);
}

static void expect_refused(struct saved *s, const char *why)
{
    struct saved *back = saved_new();
    struct file f;

    /* Some can't even be written, by the same rules. */
    cr_expect(saved_encode(s, &f.bytes, &f.n, &e) < 0 || decode(&f, back) < 0, "%s", why);
    cr_expect(strstr(e.msg, why), "\"%s\" is not in \"%s\"", why, e.msg);
    free(f.bytes);
    drop(back);
    drop(s);
}

/* What no client could have configured. */
Test(saved, judges_the_configuration_as_a_clients)
{
    struct saved *s = make();

    s->config.machine.vcpu_count = 33;
    expect_refused(s, "The number of vCPUs must be");
    s = make();
    s->config.machine.vcpu_count = 4;
    expect_refused(s, "It is of 4 vCPUs and has the states of 2");
    s = make();
    s->config.machine.mem_size_mib = 0;
    expect_refused(s, "The memory size (MiB)");
    s = make();
    s->config.machine.mem_size_mib = (UINT64_C(1) << 44) + 64; /* its bytes wrap */
    expect_refused(s, "and its header says");
    s = make();
    strcpy(s->config.drives.items[1].drive_id, "root");
    expect_refused(s, "Two drives are called root");
    s = make();
    s->config.drives.items[1].is_root_device = true;
    expect_refused(s, "A root device that is not the first drive");
    s = make();
    s->config.interfaces.items[0].mtu = 67;
    expect_refused(s, "MTU 67 is out of range");
    s = make();
    free(s->config.drives.items[1].path_on_host);
    s->config.drives.items[1].path_on_host = NULL;
    expect_refused(s, "a name or path is missing");
    s = make();
    s->config.drives.items[1].is_read_only = true;
    expect_refused(s, "not supported with read-only drives");
    s = make();
    free(s->config.drives.items[1].layers.items[0]);
    s->config.drives.items[1].layers.items[0] = text("");
    s->config.drives.items[1].layers.items[1][0] = '\xff';
    expect_refused(s, "a text is not UTF-8");
    s = make();
    s->vcpus[1].cpuid.nent = 0;
    expect_refused(s, "a vCPU has no CPUID");
    s = make();
    s->serial.fifo_head = 64;
    expect_refused(s, "a choice is none of those that there are");
    s = make();
    s->i8042.count = 17;
    expect_refused(s, "a choice is none of those that there are");
}

/* With its checksums mended, each byte but for those of the last, long block of zeroes may be
 * anything: it is read or refused. */
Test(saved, survives_each_changed_byte)
{
    struct saved *s = make();
    struct file f = encode(s);
    unsigned read = 0, refused = 0;

    for (size_t i = SNAPSHOT_HEADER_BYTES; i < f.n; i++) {
        struct saved *back = saved_new();
        const uint8_t kept = f.bytes[i];

        f.bytes[i] = (uint8_t)(kept ^ (1u << i % 8 | 0x80));
        mend_state(f.bytes, f.n);
        if (decode(&f, back) == 0)
            read++;
        else
            refused++;
        cr_expect(back->vcpu_count <= PLATFORM_VCPUS_MAX);
        drop(back);
        f.bytes[i] = kept;
    }
    cr_expect(read > 100 && refused > 100, "%u, %u", read, refused);
    free(f.bytes);
    drop(s);
}
