/* The block device, on either engine, under a hostile driver. */
#include "virtio/block.h"

#include <fcntl.h>

#include "tests/fuzz/support/device.h"
#include "tests/fuzz/support/limits.h"

#define SECTORS 2048u

static struct block block;

static const char *disk_path(void)
{
    static char path[32];

    if (!path[0]) {
        int fd = memfd_create("disk", MFD_CLOEXEC);

        MUST(fd >= 0 && ftruncate(fd, SECTORS * BLOCK_SECTOR_BYTES) == 0);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    }
    return path;
}

/* An empty one, which becomes an overlay: of a file that others could see, for the name of one that
 * has none is a link. */
static char *overlay_path(void)
{
    static char path[64];
    int fd;

    if (!path[0])
        snprintf(path, sizeof(path), "/tmp/mayfly-block-fuzz-%d", getpid());
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    MUST(fd >= 0);
    close(fd);
    return path;
}

static uint32_t put_header(struct hostile *h, uint64_t at)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_OUT,
                                      VIRTIO_BLK_T_FLUSH,   VIRTIO_BLK_T_GET_ID,
                                      VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES };
    uint8_t how = take8(h->in);
    bool has_range = how % 6 >= 4;
    struct {
        struct virtio_blk_outhdr header;
        struct virtio_blk_discard_write_zeroes range;
    } r = { .header = { .type = types[how % 6], .sector = take16(h->in) % (SECTORS + 8) } };

    if (has_range)
        r.range = (struct virtio_blk_discard_write_zeroes){ take16(h->in) % (SECTORS + 8),
                                                            take16(h->in), how >> 3 & 1 };
    if (how >= 0xf0) {
        r.header.type = take32(h->in);
        r.header.sector = take64(h->in);
        r.range.flags = take8(h->in);
    }
    poke(&h->d.mem, at, &r, sizeof(r));
    return has_range ? sizeof(r) : sizeof(r.header);
}

/* A PATCH of the drive. */
static void update(struct hostile *h)
{
    struct rate_limits limits = take_limits(h->in);
    bool has_file = take8(h->in) & 1 && !block.host.file->overlay;
    struct block_file file;
    struct error e;

    if (has_file)
        MUST(block_file_open(&file, disk_path(), block.host.file->is_read_only, &e) == 0);
    MUST(block_update(&block, has_file ? &file : NULL, &limits, &e) == 0);
}

static void check_drained(struct hostile *h)
{
    (void)h;
    MUST(block.idle_count == block.request_count && !block.current);
    MUST(block.operations == 0 && block.bytes_under_way == 0);
    for (unsigned i = 0; i < block.idle_count; i++)
        MUST(block.idle[i] < block.request_count);
}

static const struct hostile_hooks hooks = {
    .header = put_header,
    .event = update,
    .check_drained = check_drained,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct hostile h;
    struct input in = { data, size };
    uint8_t how = take8(&in);
    struct block_async *async = NULL;
    struct block_file file;
    struct block_host host = { .file = &file, .offer_flush = how & 1, .loop = &h.d.loop };
    struct error e;

    hostile_init(&h, &in);
    MUST(block_file_open(&file, disk_path(), how & (2 | 16), &e) == 0);
    if (how & 16) {
        const struct drive_config drive = { .overlay_path = overlay_path() };

        MUST(block_file_put_overlay(&file, &drive, &e) == 0);
        unlink(drive.overlay_path);
    }
    if (how & 4 && block_async_new(&async, &file, &e) == 0)
        host.async = async;
    if (how & 8)
        host.limits = take_limits(&in);
    MUST(block_init(&block, &host, &e) == 0);
    hostile_run(&h, &block.dev, &hooks);
    block_fini(&block);
    block_async_free(async);
    block_file_close(&file);
    loop_fini(&h.d.loop);
    return 0;
}
