/*
 * The block device of the benchmarks that drive one as device.h says.
 */
#pragma once

#include <string.h>

#include "benchmarks/device.h"
#include "virtio/block.h"

static struct bench bench;
static struct block block;
static struct block_file file;

/* Makes the device, on the disk at `path`; engine: Sync or Async. */
static inline void disk_init(const char *engine, const char *path)
{
    struct block_host host = { .file = &file, .loop = &bench.d.loop };
    struct error e;

    bench_init(&bench);
    if (block_file_open(&file, path, false, &e) < 0 ||
        (strcmp(engine, "Async") == 0 && block_async_new(&host.async, &file, &e) < 0) ||
        block_init(&block, &host, &e) < 0)
        die(e.msg);
}

/* The driver gives its requests by indirect tables. */
static inline void disk_start(void (*on_interrupt)(const struct kvm_line *))
{
    bench_start(&bench, &block.dev, 0, FEATURE(VIRTIO_RING_F_INDIRECT_DESC), on_interrupt);
}
