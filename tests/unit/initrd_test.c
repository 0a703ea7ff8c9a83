#include "vmm/boot/kernel.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/unit/support/image.h"
#include "vmm/kvm/layout.h"

TestSuite(initrd_load, .init = init_memory, .fini = drop_memory);

static int load_initrd(size_t bytes, uint64_t kernel_end, struct initrd *out)
{
    struct kernel_image kernel = { .end = gpa(kernel_end) };
    uint8_t *content = malloc(bytes + 1);
    autofd int fd = -1;
    int ret;

    for (size_t i = 0; i < bytes; i++)
        content[i] = pattern(i);
    fd = file_of(content, bytes);
    ret = initrd_load(&mem, fd, &kernel, out, &error);
    if (ret == 0)
        expect_file_bytes(out->start.v, content, bytes);
    free(content);
    return ret;
}

Test(initrd_load, puts_it_at_the_top_of_memory)
{
    struct initrd initrd;

    cr_assert_eq(load_initrd(0x21001, LAYOUT_HIGH_RAM, &initrd), 0, "%s", error.msg);
    cr_assert_eq(initrd.start.v, (MEM_MIB << 20) - 0x22000);
    cr_assert_eq(initrd.bytes, 0x21001);
}

Test(initrd_load, stays_below_the_mmio_gap)
{
    struct initrd initrd;

    gmem_fini(&mem);
    cr_assert_eq(gmem_init(&mem, 4096, HUGE_PAGES_NONE, &error), 0);
    cr_assert_eq(load_initrd(100, LAYOUT_HIGH_RAM, &initrd), 0, "%s", error.msg);
    cr_assert_eq(initrd.start.v, LAYOUT_MMIO_GAP - 0x1000);
}

Test(initrd_load, fills_memory_down_to_the_kernel)
{
    struct initrd initrd;

    cr_assert_eq(load_initrd(0x2000, (MEM_MIB << 20) - 0x2000, &initrd), 0, "%s", error.msg);
    cr_assert_eq(initrd.start.v, (MEM_MIB << 20) - 0x2000);
}

Test(initrd_load, refuses_to_overlap_the_kernel)
{
    struct initrd initrd;

    expect_error(load_initrd(0x2000, (MEM_MIB << 20) - 0x1fff, &initrd),
                 "Cannot load initrd due to an invalid memory configuration", "8192 bytes");
    cr_assert_eq(initrd.bytes, 0);
}

Test(initrd_load, refuses_more_than_memory)
{
    struct kernel_image kernel = { .end = gpa(LAYOUT_HIGH_RAM) };
    autofd int fd = memfd_create("initrd", MFD_CLOEXEC);
    struct initrd initrd;

    cr_assert_eq(ftruncate(fd, (MEM_MIB << 20) + 1), 0);
    expect_error(initrd_load(&mem, fd, &kernel, &initrd, &error),
                 "Cannot load initrd due to an invalid memory configuration", "bytes");
    cr_assert_eq(ftruncate(fd, INT64_MAX), 0);
    expect_error(initrd_load(&mem, fd, &kernel, &initrd, &error),
                 "Cannot load initrd due to an invalid memory configuration", "bytes");
}

Test(initrd_load, refuses_an_empty_file)
{
    struct initrd initrd;

    expect_error(load_initrd(0, LAYOUT_HIGH_RAM, &initrd),
                 "Cannot load initrd due to an invalid image", "empty");
}

Test(initrd_load, refuses_a_directory)
{
    struct kernel_image kernel = { .end = gpa(LAYOUT_HIGH_RAM) };
    autofd int fd = open("/", O_RDONLY | O_DIRECTORY);
    struct initrd initrd;

    expect_error(initrd_load(&mem, fd, &kernel, &initrd, &error),
                 "Cannot load initrd due to an invalid image",
                 "neither a regular file nor a block device");
}
