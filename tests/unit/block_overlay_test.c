/*
 * Overlays against a model, which knows of each sector what it may hold: what was written last, and
 * after the host's death also what was there at the last flush, or in between.
 */
#include "virtio/block.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <sys/stat.h>

#include "tests/unit/support/files.h"

#define SECTOR  512u
#define SECTORS 9000u /* three granules, of which the last is short */
#define HEADER  4096u
#define BITMAP  4096u
#define DATA    (HEADER + 2 * BITMAP)

static char base[] = NEW_FILE, top[] = NEW_FILE, second[] = NEW_FILE;
static struct drive_config config = { .path_on_host = base, .overlay_path = top };
static struct block_file file;
static struct error e;

static int try_open(void)
{
    cr_assert_eq(block_file_open(&file, base, true, &e), 0, "%s", e.msg);
    if (block_file_put_overlay(&file, &config, &e) == 0)
        return 0;
    block_file_close(&file);
    return -1;
}

static void open_it(void)
{
    cr_assert_eq(try_open(), 0, "%s", e.msg);
}

static void put_base(unsigned sectors)
{
    uint8_t sector[SECTOR];
    int fd = new_file(base);

    for (unsigned i = 0; i < sectors; i++) {
        memset(sector, 1 + (int)(i % 7), sizeof(sector));
        cr_assert_eq(write(fd, sector, sizeof(sector)), sizeof(sector));
    }
    close(fd);
}

static void overlay_set_up(void)
{
    put_base(SECTORS);
    close(new_file(top)); /* an empty file will do */
    open_it();
}

static void overlay_tear_down(void)
{
    block_file_close(&file);
    unlink(base);
    unlink(top);
    unlink(second);
}

TestSuite(overlay, .init = overlay_set_up, .fini = overlay_tear_down);

static uint8_t read_sector(uint64_t sector)
{
    uint8_t bytes[SECTOR];
    const struct block_extent x = block_file_find(&file, true, sector * SECTOR, SECTOR);

    cr_assert_eq(x.bytes, SECTOR);
    cr_assert_eq(pread(x.fd, bytes, SECTOR, (off_t)x.offset), SECTOR);
    for (unsigned i = 1; i < SECTOR; i++)
        cr_assert_eq(bytes[i], bytes[0], "sector %llu is torn", (unsigned long long)sector);
    return bytes[0];
}

static void write_sectors(uint64_t sector, uint32_t n, uint8_t value)
{
    const struct block_extent x = block_file_find(&file, false, sector * SECTOR, n * SECTOR);
    uint8_t *bytes = malloc(n * SECTOR);

    cr_assert_eq(x.bytes, n * SECTOR, "what is written lies in one piece");
    memset(bytes, value, n * SECTOR);
    cr_assert_eq(pwrite(x.fd, bytes, x.bytes, (off_t)x.offset), x.bytes);
    free(bytes);
    cr_assert_eq(block_overlay_wrote(file.overlay, sector * SECTOR, n * SECTOR), 0);
}

static void discard_sectors(uint64_t sector, uint32_t n)
{
    const struct block_extent x = block_file_find(&file, false, sector * SECTOR, n * SECTOR);

    cr_assert_eq(block_file_fallocate(&x, block_file_zero_mode(&file, true)), 0);
    cr_assert_eq(block_overlay_wrote(file.overlay, sector * SECTOR, n * SECTOR), 0);
}

/* The host dies: of what was not synced, only data got to the disk here, and all of the recent
 * bitmap, which is worse than none of it. The stamp is of another boot. */
static void boot_host_anew(const char *path)
{
    int64_t stamp;
    int fd = open(path, O_RDWR | O_CLOEXEC);

    cr_assert_eq(pread(fd, &stamp, sizeof(stamp), 56), sizeof(stamp));
    stamp -= 1000000000;
    cr_assert_eq(pwrite(fd, &stamp, sizeof(stamp), 56), sizeof(stamp));
    close(fd);
}

static uint64_t random_state = 88172645463325252u;

static uint64_t below(uint64_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % n;
}

static struct model {
    uint8_t now, flushed; /* what a sector holds, and held at the last flush */
    bool is_older;        /* it was written to since, and so may hold anything since then */
} model[SECTORS];

static void change(void)
{
    const uint64_t at = below(SECTORS);
    const uint32_t n = 1 + (uint32_t)below(SECTORS - at < 300 ? SECTORS - at : 300);
    const uint8_t value = below(4) ? (uint8_t)(10 + below(200)) : 0;

    if (value)
        write_sectors(at, n, value);
    else
        discard_sectors(at, n);
    for (uint64_t i = at; i < at + n; i++) {
        model[i].now = value;
        model[i].is_older = true;
    }
}

static void flush_all(void)
{
    cr_assert_eq(block_file_sync(&file), 0);
    cr_expect_not(block_overlay_is_dirty(file.overlay));
    for (unsigned i = 0; i < SECTORS; i++) {
        model[i].flushed = model[i].now;
        model[i].is_older = false;
    }
}

/* After a death of the VMM all is there; after one of the host, of what was not flushed a sector
 * that was present has its new data (they got to the disk), and another one its old. */
static void check_all(bool host_died)
{
    for (unsigned i = 0; i < SECTORS; i++) {
        const uint8_t is = read_sector(i);

        if (host_died && model[i].is_older && is == model[i].flushed)
            model[i].now = is;
        model[i].is_older = false;
        cr_assert_eq(is, model[i].now, "sector %u", i);
    }
}

Test(overlay, holds_what_the_model_says_whatever_dies)
{
    for (unsigned i = 0; i < SECTORS; i++)
        model[i].now = model[i].flushed = (uint8_t)(1 + i % 7);
    for (unsigned round = 0; round < 60; round++) {
        const bool host_dies = round % 3 == 2;

        for (uint64_t i = below(20); i > 0; i--) {
            change();
            if (below(8) == 0)
                flush_all();
        }
        check_all(false);
        for (unsigned i = 0; i < SECTORS; i++)
            model[i].is_older = model[i].now != model[i].flushed;
        block_file_close(&file);
        if (host_dies)
            boot_host_anew(top);
        open_it();
        check_all(host_dies);
        if (host_dies)
            for (unsigned i = 0; i < SECTORS; i++)
                model[i].flushed = model[i].now;
    }
}

/* Generations of the disk, each of which lies above those before it, or above the base if these
 * were folded into it. */
static char generations[40][sizeof(NEW_FILE)];
static char *layers[BLOCK_LAYERS_MAX];
static unsigned generation;

static void freeze_again(void)
{
    char *path = generations[++generation];

    if (config.layers.count == BLOCK_LAYERS_MAX) {
        cr_assert_eq(block_overlay_freeze(file.overlay, path, file.fd, &e), -1);
        cr_expect(strstr(e.msg, "no more are possible before they are folded"), "%s", e.msg);
        generation--;
        return;
    }
    close(new_file(path));
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(block_overlay_freeze(file.overlay, path, file.fd, &e), 0, "%s", e.msg);
    if (below(4) == 0) {
        block_overlay_thaw(file.overlay);
        return;
    }
    layers[config.layers.count++] = config.overlay_path;
    config.layers.items = layers;
    config.overlay_path = path;
    flush_all();
}

/* A few steps of a fold, as many as not. */
static void fold_some(void)
{
    uint64_t offset;
    uint32_t n;

    for (uint64_t steps = below(60); steps > 0 && !block_overlay_is_folded(file.overlay); steps--)
        if (block_overlay_fold_next(file.overlay, &offset, &n))
            cr_assert_gt(block_overlay_fold_copy(file.overlay, offset, n), 0);
    if (!block_overlay_is_folded(file.overlay))
        return;
    cr_assert_eq(block_overlay_fold_end(file.overlay), 0);
    cr_expect_eq(block_overlay_files(file.overlay), 1);
    if (below(4) == 0 && config.layers.count > 0) { /* as if the ring could not follow */
        block_overlay_fold_undo(file.overlay);
        cr_expect_eq(block_overlay_files(file.overlay), config.layers.count + 1);
    }
    block_overlay_fold_close(file.overlay);
    config.layers.count = 0;
    for (unsigned i = 0; i < SECTORS; i++) { /* it is a flush as well */
        model[i].flushed = model[i].now;
        model[i].is_older = false;
    }
}

static void open_generation(bool host_died)
{
    block_file_close(&file);
    if (host_died)
        boot_host_anew(config.overlay_path);
    open_it();
    check_all(host_died);
    for (unsigned i = 0; host_died && i < SECTORS; i++)
        model[i].flushed = model[i].now;
}

Test(overlay, is_folded_whatever_dies)
{
    unsigned ends = 0;

    for (unsigned i = 0; i < SECTORS; i++)
        model[i].now = model[i].flushed = (uint8_t)(1 + i % 7);
    for (unsigned round = 0; round < 400 && generation + 1 < 40; round++) {
        const size_t before = config.layers.count;

        for (uint64_t i = below(10); i > 0; i--)
            change();
        if (below(6) == 0)
            freeze_again();
        if (below(10) == 0)
            flush_all();
        fold_some();
        ends += config.layers.count < before;
        check_all(false);
        for (unsigned i = 0; i < SECTORS; i++)
            model[i].is_older = model[i].now != model[i].flushed;
        if (below(3) == 0)
            open_generation(below(2));
    }
    cr_expect_gt(ends, 5);
    for (unsigned i = 1; i <= generation; i++)
        unlink(generations[i]);
}

/* A layer, and a top above it. */
static void freeze_it(void)
{
    static char *frozen[] = { top };

    close(new_file(second));
    cr_assert_eq(unlink(second), 0);
    cr_assert_eq(block_overlay_freeze(file.overlay, second, file.fd, &e), 0, "%s", e.msg);
    config = (struct drive_config){ .path_on_host = base,
                                    .overlay_path = second,
                                    .layers = { frozen, 1 } };
}

Test(overlay, has_no_layers_when_they_were_folded)
{
    struct stat st;
    uint64_t offset;
    uint32_t n;

    write_sectors(4, 4, 0x44);
    discard_sectors(100, 8000);
    freeze_it();
    write_sectors(5, 1, 0x55);
    while (!block_overlay_is_folded(file.overlay))
        if (block_overlay_fold_next(file.overlay, &offset, &n))
            cr_assert_gt(block_overlay_fold_copy(file.overlay, offset, n), 0);
    cr_assert_eq(block_overlay_fold_end(file.overlay), 0);
    block_overlay_fold_close(file.overlay);
    cr_expect_eq(read_sector(4), 0x44);
    cr_expect_eq(read_sector(5), 0x55);
    cr_expect_eq(read_sector(8099), 0);
    cr_expect_eq(read_sector(8100), 1 + 8100 % 7);
    cr_assert_eq(stat(second, &st), 0);
    cr_expect_lt(st.st_blocks * 512, 65536, "a hole stays one");
    block_file_close(&file);
    cr_expect_eq(try_open(), -1);
    cr_expect(strstr(e.msg, "it has no layers below it, or they were folded into it"), "%s", e.msg);
    config.layers.count = 0;
    open_it();
    cr_expect_eq(read_sector(4), 0x44);
}

/* What is not there any more is not taken for zeroes. */
Test(overlay, is_not_folded_from_a_layer_that_was_cut_off)
{
    uint64_t offset;
    uint32_t n;

    discard_sectors(100, 8000);
    freeze_it();
    cr_assert_eq(truncate(top, DATA + 4000 * SECTOR), 0);
    cr_assert_not(block_overlay_fold_next(file.overlay, &offset, &n));
    cr_assert(block_overlay_fold_next(file.overlay, &offset, &n));
    cr_expect_eq(block_overlay_fold_copy(file.overlay, offset, n), -ENODATA);
}

Test(overlay, is_laid_out_as_it_is_specified)
{
    struct stat st;
    uint8_t bits[BITMAP], bytes[SECTOR];
    int fd = open(top, O_RDONLY | O_CLOEXEC);

    write_sectors(9, 2, 0x5a);
    cr_assert_eq(fstat(fd, &st), 0);
    cr_expect_eq(st.st_size, DATA + SECTORS * SECTOR);
    cr_assert_eq(pread(fd, bits, sizeof(bits), HEADER), sizeof(bits));
    cr_expect_eq(bits[1], 0, "it is not committed");
    cr_assert_eq(pread(fd, bits, sizeof(bits), HEADER + BITMAP), sizeof(bits));
    cr_expect_eq(bits[1], 6);
    cr_assert_eq(block_file_sync(&file), 0);
    cr_assert_eq(pread(fd, bits, sizeof(bits), HEADER), sizeof(bits));
    cr_expect_eq(bits[1], 6);
    cr_assert_eq(pread(fd, bytes, sizeof(bytes), DATA + 10 * SECTOR), sizeof(bytes));
    cr_expect_eq(bytes[511], 0x5a);
    close(fd);
}

/* A run ends where another file has the next sector, whichever word of the bitmap that is in. */
Test(overlay, is_read_in_pieces_that_lie_together)
{
    static const struct {
        uint64_t at;
        uint32_t n;
    } runs[] = { { 1, 1 }, { 63, 2 }, { 130, 1 }, { 192, 128 }, { 8999, 1 } };
    uint64_t at = 0;

    for (unsigned i = 0; i < sizeof(runs) / sizeof(*runs); i++)
        write_sectors(runs[i].at, runs[i].n, 0xee);
    for (unsigned i = 0; i < sizeof(runs) / sizeof(*runs); i++) {
        struct block_extent x =
            block_file_find(&file, true, at * SECTOR, (SECTORS - (uint32_t)at) * SECTOR);

        cr_expect_eq(x.bytes, (runs[i].at - at) * SECTOR, "before run %u", i);
        cr_expect(x.file == 0 && x.fd == file.fd && x.offset == at * SECTOR);
        x = block_file_find(&file, true, runs[i].at * SECTOR,
                            (SECTORS - (uint32_t)runs[i].at) * SECTOR);
        cr_expect_eq(x.bytes, runs[i].n * SECTOR, "run %u", i);
        cr_expect(x.file == 1 && x.offset == DATA + runs[i].at * SECTOR);
        at = runs[i].at + runs[i].n;
    }
}

/* The host may cut a transfer short within a sector, which is present when its last byte is. */
Test(overlay, has_a_sector_when_all_of_it_is_there)
{
    struct block_extent x = block_file_find(&file, false, 5 * SECTOR, 2 * SECTOR);

    cr_assert_eq(block_overlay_wrote(file.overlay, 5 * SECTOR, 100), 0);
    cr_expect_eq(read_sector(5), 6, "the base's");
    x = block_file_find(&file, true, 5 * SECTOR + 100, 412);
    cr_expect(x.file == 0 && x.offset == 5 * SECTOR + 100 && x.bytes == 412);
    cr_assert_eq(block_overlay_wrote(file.overlay, 5 * SECTOR + 100, 412), 0);
    cr_expect_eq(block_file_find(&file, true, 5 * SECTOR, SECTOR).file, 1);
}

/* Garbage in the bitmaps is the guest's own loss. */
Test(overlay, takes_any_bits)
{
    uint8_t bits[2 * BITMAP];
    int fd = open(top, O_RDWR | O_CLOEXEC);

    memset(bits, 0xff, sizeof(bits));
    block_file_close(&file);
    cr_assert_eq(pwrite(fd, bits, sizeof(bits), HEADER), sizeof(bits));
    close(fd);
    open_it();
    cr_expect_eq(block_file_find(&file, true, 0, SECTORS * SECTOR).bytes, SECTORS * SECTOR);
    cr_expect_eq(read_sector(8999), 0);
    write_sectors(8999, 1, 3);
    cr_assert_eq(block_file_sync(&file), 0);
}

Test(overlay, goes_on_above_what_was_frozen)
{
    write_sectors(4, 4, 0x44);
    freeze_it();
    write_sectors(6, 4, 0x66);
    discard_sectors(9, 1);
    cr_expect_eq(block_file_find(&file, true, 3 * SECTOR, 9 * SECTOR).bytes, SECTOR);
    cr_expect_eq(read_sector(5), 0x44);
    cr_expect_eq(read_sector(6), 0x66);
    cr_expect_eq(read_sector(9), 0);
}

static bool is_frozen(const char *path)
{
    uint32_t state;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    cr_assert_eq(pread(fd, &state, sizeof(state), 12), sizeof(state));
    close(fd);
    return state == 1;
}

/* As after a kill -9 between a freeze and its flush. */
Test(overlay, goes_on_above_what_was_not_sealed)
{
    const struct drive_config old = config;
    struct block_file other;

    write_sectors(4, 4, 0x44);
    freeze_it();
    write_sectors(6, 4, 0x66);
    block_file_close(&file);
    open_it();
    cr_expect_eq(read_sector(5), 0x44);
    cr_expect_eq(read_sector(6), 0x66);
    cr_expect_not(is_frozen(top));
    cr_assert_eq(block_file_open(&other, base, true, &e), 0);
    cr_expect_eq(block_file_put_overlay(&other, &old, &e), -1, "it is locked");
    block_overlay_lend(file.overlay);
    cr_assert_eq(block_file_put_overlay(&other, &config, &e), 0, "%s", e.msg);
    block_file_close(&file);
    cr_assert_eq(block_file_sync(&other), 0);
    cr_expect(is_frozen(top));
    block_file_close(&other);
    open_it();
    cr_expect_eq(read_sector(5), 0x44);
    cr_expect_eq(read_sector(6), 0x66);
}

/* What neither had flushed is gone: each sector is what it was before. */
Test(overlay, is_what_was_flushed_if_the_host_dies_before_it_is_sealed)
{
    write_sectors(4, 1, 0x44);
    cr_assert_eq(block_file_sync(&file), 0);
    write_sectors(5, 1, 0x55);
    freeze_it();
    write_sectors(4, 1, 0x66);
    block_file_close(&file);
    boot_host_anew(top);
    boot_host_anew(second);
    open_it();
    cr_expect_eq(read_sector(4), 0x44);
    cr_expect_eq(read_sector(5), 1 + 5 % 7);
    cr_assert_eq(block_file_sync(&file), 0);
    cr_expect(is_frozen(top));
}

Test(overlay, is_not_made_above_one_that_is_in_use_or_might_be)
{
    write_sectors(4, 4, 0x44);
    freeze_it();
    block_file_close(&file);
    cr_assert_eq(truncate(second, 0), 0);
    cr_expect_eq(try_open(), -1);
    cr_expect(strstr(e.msg, "it is not frozen, and can't be one of the layers"), "%s", e.msg);
}

Test(overlay, seals_what_was_frozen_with_a_flush)
{
    write_sectors(4, 4, 0x44);
    freeze_it();
    write_sectors(6, 4, 0x66);
    cr_expect(block_overlay_is_dirty(file.overlay));
    cr_assert_eq(block_file_sync(&file), 0);
    block_file_close(&file);
    open_it();
    cr_expect_eq(read_sector(5), 0x44);
    cr_expect_eq(read_sector(6), 0x66);
    cr_expect_eq(block_overlay_files(file.overlay), 2);
}

Test(overlay, is_what_it_was_after_a_thaw)
{
    for (unsigned is_sealed = 0; is_sealed < 2; is_sealed++) {
        write_sectors(4, 4, 0x44);
        freeze_it();
        if (is_sealed)
            cr_assert_eq(block_file_sync(&file), 0);
        block_overlay_thaw(file.overlay);
        cr_expect_eq(access(second, F_OK), -1, "what was made is gone");
        write_sectors(5, 1, 0x55);
        cr_assert_eq(block_file_sync(&file), 0);
        block_file_close(&file);
        config = (struct drive_config){ .path_on_host = base, .overlay_path = top };
        open_it();
        cr_expect_eq(read_sector(5), 0x55);
    }
}

/* The VMM dies before the layer is sealed. It is the top again then, and is written. */
Test(overlay, is_no_layer_of_what_was_made_before_it_was_written_again)
{
    struct drive_config later;
    char third[] = NEW_FILE;

    freeze_it();
    later = config;
    write_sectors(6, 1, 0x66);
    block_file_close(&file);
    config = (struct drive_config){ .path_on_host = base, .overlay_path = top };
    open_it();
    write_sectors(6, 2, 0x77);
    close(new_file(third));
    cr_assert_eq(block_overlay_freeze(file.overlay, third, file.fd, &e), 0, "%s", e.msg);
    cr_assert_eq(block_file_sync(&file), 0);
    block_file_close(&file);
    config = later;
    cr_expect_eq(try_open(), -1);
    cr_expect(strstr(e.msg, "it was made above something else"), "%s", e.msg);
    config.overlay_path = third;
    open_it();
    cr_expect_eq(read_sector(6), 0x77);
    unlink(third);
}

Test(overlay, of_an_empty_disk_is_empty)
{
    block_file_close(&file);
    unlink(top);
    cr_assert_eq(truncate(base, 0), 0);
    open_it();
    cr_expect_eq(file.sectors, 0);
    cr_assert_eq(block_file_sync(&file), 0);
    block_file_close(&file);
    config.is_frozen = true; /* then it has to have nothing */
    open_it();
    config.is_frozen = false;
}
