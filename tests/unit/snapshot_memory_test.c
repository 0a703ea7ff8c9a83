#include "vmm/snapshot/memory.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "tests/unit/support/snapshot.h"

#define CODE 0x8000u

static struct saved_vm vm;
static struct page_set set;

static void tear_down(void)
{
    free(set.words);
    drop_vm(&vm);
    remove_directory();
}

TestSuite(snapshot_memory, .init = make_directory, .fini = tear_down);

static void ask(enum snapshot_kind kind)
{
    free(set.words);
    cr_assert_eq(snapshot_memory_pages(&vm.snapshot, kind, &set, &e), 0, "%s", e.msg);
    cr_assert_eq(set.pages, gmem_pages(&vm.mem));
}

static unsigned pages_in(void)
{
    unsigned n = 0;

    for (uint64_t i = 0; i < set.pages; i++)
        n += page_set_has(&set, i);
    return n;
}

/* A processor that writes a byte at DS:SI * 16 and stops. Real mode, as it is after a reset. */
static void guest_writes(uint64_t at_address)
{
    static const uint8_t code[] = { 0xc6, 0x04, 0x58, /* movb $'X', (%si) */ 0xf4 /* hlt */ };
    const int vcpu = ioctl(vm.kvm.vm_fd, KVM_CREATE_VCPU, 0);
    struct kvm_run *run = mmap(NULL, vm.kvm.run_bytes, PROT_READ, MAP_SHARED, vcpu, 0);
    struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rsi = at_address & 15 };
    struct kvm_sregs sregs;

    memcpy(gmem_host_(&vm.mem, gpa(CODE), sizeof(code)), code, sizeof(code)); /* nobody's write */
    cr_assert(vcpu >= 0 && run != MAP_FAILED);
    cr_assert_eq(ioctl(vcpu, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    sregs.ds.base = at_address & ~UINT64_C(15);
    sregs.ds.selector = (uint16_t)(at_address >> 4);
    cr_assert_eq(ioctl(vcpu, KVM_SET_SREGS, &sregs), 0);
    cr_assert_eq(ioctl(vcpu, KVM_SET_REGS, &regs), 0);
    cr_assert_eq(ioctl(vcpu, KVM_RUN, 0), 0);
    cr_assert_eq(run->exit_reason, KVM_EXIT_HLT);
    munmap(run, vm.kvm.run_bytes);
    close(vcpu);
}

static unsigned resident(void)
{
    unsigned char pages[MEM_PAGES];
    unsigned n = 0;

    cr_assert_eq(mincore(vm.mem.regions[0].host, MEM_BYTES, pages), 0);
    for (unsigned i = 0; i < MEM_PAGES; i++)
        n += pages[i] & 1;
    return n;
}

Test(snapshot_memory, of_a_boot_is_what_was_touched)
{
    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    write_page(&vm, MEM_PAGES - 1, 'a');
    ask(SNAPSHOT_FULL);
    cr_expect_eq(pages_in(), 2);
    cr_expect(page_set_has(&set, 3) && page_set_has(&set, MEM_PAGES - 1));
    ask(SNAPSHOT_DIFF);
    cr_expect_eq(pages_in(), 2);
}

Test(snapshot_memory, is_not_faulted_in)
{
    const struct snapshot_files f = pair_at("state", "mem", false);

    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    cr_expect_eq(save_to(&vm, SNAPSHOT_FULL, "x", &f), 0, "%s", e.msg);
    cr_expect_eq(resident(), 1);
    cr_expect(file_is(at("mem"), &vm.mem));
}

/* What a page that is swapped out looks like to mincore(2): so does one of a file that is nowhere
 * in memory. */
Test(snapshot_memory, has_what_may_be_swapped_out)
{
    char name[PATH_MAX];
    int fd;

    strcpy(name, at("pages"));
    fd = open(name, O_RDWR | O_CREAT, 0600);
    cr_assert_eq(ftruncate(fd, MEM_BYTES), 0);
    cr_assert_eq(pwrite(fd, "swapped", 7, 5 * GMEM_PAGE_BYTES + 4090), 7);
    cr_assert_eq(pwrite(fd, "s", 1, 300 * GMEM_PAGE_BYTES + 4095), 1);
    cr_assert_eq(fsync(fd), 0);
    cr_assert_eq(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    cr_assert_eq(gmem_init_file(&vm.mem, MEM_MIB, fd, 0, &e), 0, "%s", e.msg);
    close(fd);
    if (resident() != 0)
        cr_skip_test("the file stays in memory");
    set.pages = MEM_PAGES;
    set.words = calloc(MEM_PAGES / 64, sizeof(*set.words));
    cr_assert_eq(snapshot_memory_present_(&vm.mem, &set, 0, set.pages, false), 0);
    cr_expect_eq(pages_in(), 0);
    cr_assert_eq(snapshot_memory_present_(&vm.mem, &set, 0, set.pages, true), 0);
    cr_expect_eq(pages_in(), 3, "that, and what it goes on in");
    cr_expect(page_set_has(&set, 5) && page_set_has(&set, 6) && page_set_has(&set, 300));
    memset(set.words, 0, MEM_PAGES / 8);
    cr_assert_eq(snapshot_memory_present_(&vm.mem, &set, 0, set.pages, true), 0);
    cr_expect_eq(pages_in(), 3, "that the others were looked at puts nothing into them");
}

Test(snapshot_memory, has_what_a_start_maps_from_files)
{
    static uint8_t image[5 * GMEM_PAGE_BYTES];
    char name[PATH_MAX];
    int fd;

    strcpy(name, at("image"));
    fd = open(name, O_RDWR | O_CREAT, 0600);
    memset(image, 'k', sizeof(image));
    cr_assert_eq(write(fd, image, sizeof(image)), (ssize_t)sizeof(image));
    cr_assert_eq(fsync(fd), 0);
    boot_vm(&vm, false);
    cr_assert_eq(gmem_load_file(&vm.mem, gpa(0x100000), fd, 0, sizeof(image), &e), 0, "%s", e.msg);
    cr_assert_eq(vm.mem.file_part_count, 1);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    ask(SNAPSHOT_FULL);
    cr_expect_eq(pages_in(), 5);
    cr_expect(page_set_has(&set, 256) && page_set_has(&set, 260));
    cr_expect_eq(save(&vm, SNAPSHOT_FULL, "x"), 0, "%s", e.msg);
    cr_expect(file_is(at("mem"), &vm.mem));
}

/* By the guest, by the VMM, and once written, no longer. */
Test(snapshot_memory, of_a_diff_is_what_changed_since_the_last)
{
    boot_vm(&vm, true);
    write_page(&vm, 3, 'a');
    guest_writes(20 * GMEM_PAGE_BYTES);
    cr_assert_eq(save(&vm, SNAPSHOT_DIFF, "first"), 0, "%s", e.msg);
    cr_expect(file_is(at("mem"), &vm.mem));
    ask(SNAPSHOT_DIFF);
    cr_expect_eq(pages_in(), 0);
    write_page(&vm, 4, 'b');
    ask(SNAPSHOT_DIFF);
    cr_expect_eq(pages_in(), 1);
    cr_expect(page_set_has(&set, 4));
}

Test(snapshot_memory, of_a_diff_has_the_guests_pages)
{
    boot_vm(&vm, true);
    cr_assert_eq(save(&vm, SNAPSHOT_FULL, "first"), 0, "%s", e.msg);
    guest_writes(20 * GMEM_PAGE_BYTES + 7);
    for (unsigned again = 0; again < 2; again++) {
        ask(SNAPSHOT_DIFF);
        cr_expect(page_set_has(&set, 20), "also when it is asked for again");
    }
    cr_expect_eq(((char *)vm.mem.regions[0].host)[20 * GMEM_PAGE_BYTES + 7], 'X');
    vm.mem.regions[0].host[CODE] = 0;                 /* which no log has, and */
    memset(vm.mem.regions[0].host + CODE + 1, 0, 16); /* a guest would not do */
    cr_assert_eq(save(&vm, SNAPSHOT_DIFF, "second"), 0, "%s", e.msg);
    cr_expect(file_is(at("mem"), &vm.mem));
    ask(SNAPSHOT_DIFF);
    cr_expect_eq(pages_in(), 0);
}

/* A VM that was loaded without tracking: exactly what it wrote, and all of it each time. */
Test(snapshot_memory, of_a_restored_machine_is_what_it_wrote)
{
    for (bool tracks = false;; tracks = true) {
        boot_vm(&vm, false);
        for (unsigned i = 0; i < MEM_PAGES; i++)
            write_page(&vm, i, 'a');
        cr_assert_eq(save(&vm, SNAPSHOT_FULL, "first"), 0, "%s", e.msg);
        drop_vm(&vm);
        load_vm(&vm, tracks);
        ask(SNAPSHOT_DIFF);
        cr_expect_eq(pages_in(), 0);
        write_page(&vm, 9, 'b');
        ask(SNAPSHOT_DIFF);
        cr_expect(pages_in() == 1 && page_set_has(&set, 9));
        ask(SNAPSHOT_FULL);
        cr_expect_eq(pages_in(), 1, "the rest is in the file");
        cr_assert_eq(save(&vm, SNAPSHOT_FULL, "second"), 0, "%s", e.msg);
        cr_expect(file_is(at("mem"), &vm.mem));
        ask(SNAPSHOT_DIFF);
        cr_expect_eq(pages_in(), tracks ? 0 : 1);
        ask(SNAPSHOT_FULL);
        cr_expect_eq(pages_in(), 1, "it is still mapped from the first file");
        if (tracks)
            break;
        drop_vm(&vm);
    }
}

/* Two regions, above and below the gap. */
Test(snapshot_memory, of_more_than_3_gib_goes_on_behind_the_gap)
{
    const uint64_t first_above = UINT64_C(3) << 18;
    const char byte = 'a';
    struct stat st;
    int fd;

    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
    cr_assert_eq(gmem_init(&vm.mem, 3 * 1024 + 2, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_open(&vm.kvm, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_add_memory(&vm.kvm, &vm.mem, true, &e), 0, "%s", e.msg);
    cr_assert_eq(snapshot_memory_open(&vm.snapshot, &vm.mem, &vm.kvm, SNAPSHOT_SOURCE_BOOT, true,
                                      NULL, NULL, &e),
                 0, "%s", e.msg);
    cr_expect_eq(gmem_page_of(&vm.mem, gpa(UINT64_C(1) << 32)), first_above);
    cr_assert_eq(gmem_put(&vm.mem, gpa((UINT64_C(1) << 32) + 5), &byte), 0);
    cr_assert_eq(gmem_put(&vm.mem, gpa((UINT64_C(3) << 30) - 1), &byte), 0);
    ask(SNAPSHOT_DIFF);
    cr_expect_eq(pages_in(), 2);
    cr_expect(page_set_has(&set, first_above - 1) && page_set_has(&set, first_above));
    cr_assert_eq(save(&vm, SNAPSHOT_DIFF, "first"), 0, "%s", e.msg);
    cr_assert_eq(gmem_put(&vm.mem, gpa((UINT64_C(1) << 32) + GMEM_PAGE_BYTES + 5), &byte), 0);
    cr_assert_eq(save(&vm, SNAPSHOT_DIFF, "second"), 0, "%s", e.msg);
    cr_expect_eq(byte_of(at("mem"), first_above), 'a');
    cr_expect_eq(byte_of(at("mem"), first_above + 1), 'a');
    fd = open(at("mem"), O_RDONLY);
    cr_assert_eq(fstat(fd, &st), 0);
    cr_expect_eq(st.st_size, (off_t)(3 * 1024 + 2) << 20);
    close(fd);
}

/* A handler has what is not there. */
Test(snapshot_memory, of_a_handlers_machine_is_all_of_it)
{
    cr_assert_eq(gmem_init(&vm.mem, MEM_MIB, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
    cr_assert_eq(kvm_open(&vm.kvm, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_add_memory(&vm.kvm, &vm.mem, true, &e), 0, "%s", e.msg);
    cr_assert_eq(snapshot_memory_open(&vm.snapshot, &vm.mem, &vm.kvm, SNAPSHOT_SOURCE_UFFD, false,
                                      NULL, NULL, &e),
                 0, "%s", e.msg);
    write_page(&vm, 9, 'b');
    ask(SNAPSHOT_FULL);
    cr_expect_eq(pages_in(), MEM_PAGES);
    ask(SNAPSHOT_DIFF);
    cr_expect_eq(pages_in(), 1);
}

Test(snapshot_memory, keeps_no_log_over_huge_pages_unless_asked)
{
    cr_expect(snapshot_memory_logs(SNAPSHOT_SOURCE_BOOT, true, true));
    cr_expect(snapshot_memory_logs(SNAPSHOT_SOURCE_FILE, false, false));
    cr_expect(snapshot_memory_logs(SNAPSHOT_SOURCE_UFFD, false, false));
    cr_expect_not(snapshot_memory_logs(SNAPSHOT_SOURCE_UFFD, false, true));
    cr_expect_not(snapshot_memory_logs(SNAPSHOT_SOURCE_BOOT, false, false));
}
