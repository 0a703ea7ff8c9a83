/* RAM is where the map says, to its first and last byte, and nowhere twice; what lies outside it
 * reads all ones. Maps up to 8 GiB. */
#include "runtime/boot.h"
#include "runtime/io.h"
#include "runtime/report.h"

#define STEP  (64ul << 20)
#define LIMIT (8ul << 30)

extern char image_end[];

static uint64_t written;

static uint64_t pattern(uint64_t at)
{
    return at ^ 0x9e3779b97f4a7c15ul;
}

static void touch(uint64_t at, bool write, uint64_t *wrong)
{
    if (at >= 0x1000000 && at < (uint64_t)image_end)
        return;
    if (write) {
        mmio_write64(at, pattern(at));
        written++;
    } else if (mmio_read64(at) != pattern(at)) {
        ++*wrong;
        print("0x%lx holds another value\n", at);
    }
}

/* First and last page of the range, their first and last words, and a word every 64 MiB. */
static void walk(const struct memory_range *r, bool write, uint64_t *wrong)
{
    uint64_t last_page = (r->start + r->bytes - 1) & ~0xffful;

    touch(r->start, write, wrong);
    touch(r->start + 0xff8, write, wrong);
    for (uint64_t at = r->start + STEP; at < last_page; at += STEP)
        touch(at, write, wrong);
    touch(last_page, write, wrong);
    touch(r->start + r->bytes - 8, write, wrong);
}

static bool is_ram(const struct memory_range *r)
{
    return r->type == E820_RAM && r->start + r->bytes <= LIMIT;
}

static void check_patterns(void)
{
    uint64_t wrong = 0, bytes = 0;

    for (int write = 1; write >= 0; write--)
        for (unsigned i = 0; i < boot.range_count; i++)
            if (is_ram(&boot.ranges[i]))
                walk(&boot.ranges[i], write != 0, &wrong);
    for (unsigned i = 0; i < boot.range_count; i++)
        bytes += is_ram(&boot.ranges[i]) ? boot.ranges[i].bytes : 0;
    expect_equal(wrong, 0, "each_place_in_ram_keeps_its_own_value");
    expect(written >= 8, "first_and_last_pages_were_written");
    /* [0x9fc00, 1 MiB) is reserved, all the rest is RAM. */
    expect_equal(bytes + 0x60400, boot_number("mem_mib", 0) << 20, "the_map_shows_all_of_the_ram");
}

static void check_end(uint64_t end, const char *quiet, const char *straddling)
{
    uint64_t before = mmio_read32(end - 4);

    mmio_write64(end, 0);
    mmio_write8(end + 4095, 0);
    expect(mmio_read64(end) == ~0ul && mmio_read8(end + 4095) == 0xff, quiet);
    mmio_write64(end - 4, 0x1122334455667788);
    expect_equal(mmio_read64(end - 4), 0xffffffff55667788, straddling);
    mmio_write32(end - 4, (uint32_t)before);
}

void guest_main(void)
{
    uint64_t low_end = 0, high_end = 0;

    for (unsigned i = 0; i < boot.range_count; i++) {
        const struct memory_range *r = &boot.ranges[i];
        if (!is_ram(r))
            continue;
        if (r->start >= 1ul << 32)
            high_end = r->start + r->bytes;
        else
            low_end = r->start + r->bytes;
    }
    check_patterns();
    check_end(low_end, "behind_the_low_ram_reads_all_ones",
              "an_access_across_the_end_of_low_ram_is_split");
    if (high_end != 0 && high_end < LIMIT)
        check_end(high_end, "behind_the_high_ram_reads_all_ones",
                  "an_access_across_the_end_of_high_ram_is_split");
    expect_equal(mmio_read64(0xd0000000), ~0ul, "the_gap_reads_all_ones");
}
