/*
 * Kernel images: the input is the file. Where it is accepted, everything that the start needs of it
 * lies in guest memory. The last bit of an input says whether it is the initrd as well.
 */
#include "vmm/boot/kernel.h"

#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/support/input.h"
#include "vmm/boot/boot_info.h"

#define MEM_MIB 18u

static int file_of(const uint8_t *data, size_t size)
{
    static int fd = -1;

    if (fd < 0)
        fd = memfd_create("kernel", MFD_CLOEXEC);
    MUST(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    return fd;
}

static void start(struct guest_mem *m, const struct kernel_image *kernel, int initrd_fd)
{
    struct initrd initrd = { .bytes = 0 };
    struct cmdline cmdline;
    struct error e;

    MUST(kernel->setup_header_bytes <= SETUP_HEADER_BYTES);
    MUST(gmem_has(m, kernel->entry, 1) && kernel->end.v <= MEM_MIB << 20);
    if (initrd_fd >= 0 && initrd_load(m, initrd_fd, kernel, &initrd, &e) == 0)
        MUST(initrd.start.v >= kernel->end.v && gmem_has(m, initrd.start, initrd.bytes));
    MUST(cmdline_init(&cmdline, NULL, &e) == 0);
    MUST(boot_info_write(m, kernel, &cmdline, &initrd, &e) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd = file_of(data, size);
    bool has_initrd = size > 0 && data[size - 1] & 1;
    struct kernel_image kernel;
    struct guest_mem m;
    struct error e;

    MUST(gmem_init(&m, MEM_MIB, HUGE_PAGES_NONE, &e) == 0);
    e.msg[0] = '\0';
    if (kernel_load(&m, fd, &kernel, &e) == 0)
        start(&m, &kernel, has_initrd ? fd : -1);
    else
        MUST(e.msg[0]);
    gmem_fini(&m);
    return 0;
}
