/* A machine's memory without a guest, the pair of files it is saved in, and what a load makes of
 * them. */
#pragma once

#include <criterion/criterion.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "tests/unit/support/directory.h"
#include "vmm/kvm/kvm.h"
#include "vmm/snapshot/files.h"
#include "vmm/snapshot/mark.h"
#include "vmm/snapshot/pages.h"
#include "vmm/snapshot/passes.h"

#define MEM_MIB   2u
#define MEM_BYTES ((size_t)MEM_MIB << 20)
#define MEM_PAGES (MEM_BYTES / GMEM_PAGE_BYTES)

struct saved_vm {
    struct guest_mem mem;
    struct kvm kvm;
    struct snapshot_memory snapshot;
};

/* What stands for a machine's state. */
struct saved_state {
    struct uuid name;
    char label[8];
};

static struct error e;

/* A file system on the test's directory, that no other process sees. */
static inline void mount_here(const char *type, const char *options)
{
    if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", directory, type, 0, options) < 0)
        cr_skip_test("only root may mount");
}

/* Also what is mounted there. */
static inline void remove_pairs(void)
{
    umount2(at("mem"), MNT_DETACH);
    umount2(at("state"), MNT_DETACH);
    while (umount2(directory, MNT_DETACH) == 0)
        ;
    remove_directory();
}

/* A machine just booted; where it tracks, one of KVM's. */
static inline void boot_vm(struct saved_vm *vm, bool tracks)
{
    *vm = (struct saved_vm){ .kvm = KVM_NONE };
    cr_assert_eq(gmem_init(&vm->mem, MEM_MIB, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    if (tracks) {
        if (access("/dev/kvm", R_OK | W_OK) < 0)
            cr_skip_test("no usable /dev/kvm on this host");
        cr_assert_eq(kvm_open(&vm->kvm, NULL, &e), 0, "%s", e.msg);
        cr_assert_eq(kvm_add_memory(&vm->kvm, &vm->mem, true, &e), 0, "%s", e.msg);
    }
    cr_assert_eq(snapshot_memory_open(&vm->snapshot, &vm->mem, &vm->kvm, SNAPSHOT_SOURCE_BOOT,
                                      tracks, NULL, NULL, &e),
                 0, "%s", e.msg);
}

static inline void drop_vm(struct saved_vm *vm)
{
    snapshot_memory_close(&vm->snapshot);
    kvm_close(&vm->kvm);
    gmem_fini(&vm->mem);
}

static inline void write_page(struct saved_vm *vm, uint64_t page, char text)
{
    cr_assert_eq(gmem_put(&vm->mem, gpa(page * GMEM_PAGE_BYTES + 5), &text), 0);
}

static inline int save_to(struct saved_vm *vm, enum snapshot_kind kind, const char *label,
                          const struct snapshot_files *f)
{
    struct saved_state state = { 0 };

    cr_assert_eq(uuid_make(&state.name, &e), 0);
    strcpy(state.label, label);
    return snapshot_files_write(f, &vm->snapshot, kind, &state.name, &state, sizeof(state), &e);
}

/* All of a pass into a file. */
static inline int write_pass(struct passes *p, struct snapshot_pair *pair)
{
    uint64_t from, to;
    int ret;

    while ((ret = passes_next(p, &from, &to, &e)) > 0)
        if (snapshot_pair_write(pair, &p->set, p->number == 1, from, to, &e) < 0 ||
            snapshot_pair_push(pair, from, to, &e) < 0)
            return -1;
    return ret;
}

/* As for a guest that runs: meanwhile() is what it does after the first pass, and once more after
 * that the whole of it is done. The machine keeps a log. */
static inline int save_live(struct saved_vm *vm, enum snapshot_kind kind, const char *label,
                            const struct snapshot_files *f, void (*meanwhile)(struct saved_vm *vm))
{
    struct saved_state state = { 0 };
    struct snapshot_pair *pair;
    struct passes p;
    uint8_t *kept;
    int ret;

    cr_assert_eq(uuid_make(&state.name, &e), 0);
    strcpy(state.label, label);
    pair = snapshot_pair_begin(f, &vm->snapshot, kind, &state.name, &e);
    if (!pair)
        return -1;
    cr_assert_eq(passes_begin(&p, &vm->snapshot, kind, &e), 0, "%s", e.msg);
    ret = write_pass(&p, pair) < 0 || snapshot_pair_sync(pair, &e) < 0 ? -1 : 0;
    meanwhile(vm);
    if (!ret)
        ret = passes_again(&p, &e);
    if (!ret) {
        kept = malloc((size_t)p.count * GMEM_PAGE_BYTES + 1);
        snapshot_pages_take(&vm->mem, &p.set, kept);
        if (snapshot_pair_put(pair, &p.set, kept, &e) < 0 ||
            snapshot_pair_end(pair, &state, sizeof(state), &e) < 0)
            ret = -1;
        free(kept);
    }
    passes_end(&p, ret ? NULL : &state.name);
    snapshot_pair_close(pair);
    return ret;
}

/* The names of a pair; the last two stand. */
static inline struct snapshot_files pair_at(const char *state, const char *memory, bool sync)
{
    static char paths[4][PATH_MAX];
    static unsigned next;
    char *path = paths[next++ % 4], *other = paths[next++ % 4];

    strcpy(path, at(state));
    strcpy(other, at(memory));
    return (struct snapshot_files){ path, other, sync };
}

static inline int save(struct saved_vm *vm, enum snapshot_kind kind, const char *label)
{
    const struct snapshot_files f = pair_at("state", "mem", false);

    return save_to(vm, kind, label, &f);
}

/* The descriptor of a memory file, or -1. */
static inline int open_memory(const char *path, const struct uuid *name, uint64_t bytes)
{
    struct snapshot_chain files;

    return snapshot_chain_open(&files, &path, 1, name, bytes, &e) < 0 ? -1 : files.fds[0];
}

/* The descriptor of memory of the pair under these names, which *state goes with; or -1. */
static inline int open_pair(const char *state_path, const char *memory_path,
                            struct saved_state *state)
{
    uint8_t *bytes = NULL;
    size_t n;
    int fd = -1;

    if (snapshot_files_read_state(state_path, &bytes, &n, &e) < 0)
        return -1;
    if (n == sizeof(*state)) { /* as a checksum would tell */
        memcpy(state, bytes, n);
        fd = open_memory(memory_path, &state->name, MEM_BYTES);
    }
    free(bytes);
    return fd;
}

/* A machine loaded from the pair. */
static inline void load_vm(struct saved_vm *vm, bool tracks)
{
    struct saved_state state;
    const int fd = open_pair(at("state"), at("mem"), &state);
    struct snapshot_chain files = { .fds = { fd }, .count = 1 };

    cr_assert_geq(fd, 0, "%s", e.msg);
    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
    cr_assert_eq(gmem_init_file(&vm->mem, MEM_MIB, fd, 0, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_open(&vm->kvm, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_add_memory(&vm->kvm, &vm->mem, true, &e), 0, "%s", e.msg);
    cr_assert_eq(snapshot_memory_open(&vm->snapshot, &vm->mem, &vm->kvm, SNAPSHOT_SOURCE_FILE,
                                      tracks, &files, &state.name, &e),
                 0, "%s", e.msg);
}

static inline const char *mark_of(const char *path)
{
    static char text[128];
    const ssize_t n = getxattr(path, SNAPSHOT_MARK, text, sizeof(text) - 1);

    text[n < 0 ? 0 : n] = '\0';
    return n < 0 ? "none" : strchr(text, ' ') + 1;
}

static inline bool is_layer(const char *path)
{
    return strncmp(mark_of(path), "layer on ", 9) == 0;
}

/* Whether a file's bytes are those of memory. */
static inline bool file_is(const char *path, const struct guest_mem *mem)
{
    uint8_t *bytes = malloc(MEM_BYTES);
    const int fd = open(path, O_RDONLY);
    const bool is = read(fd, bytes, MEM_BYTES) == (ssize_t)MEM_BYTES &&
                    memcmp(bytes, mem->regions[0].host, MEM_BYTES) == 0;

    close(fd);
    free(bytes);
    return is;
}

/* The one byte of a page that write_page() writes. */
static inline char byte_of(const char *path, uint64_t page)
{
    const int fd = open(path, O_RDONLY);
    char byte = '?';

    cr_expect_eq(pread(fd, &byte, 1, (off_t)(page * GMEM_PAGE_BYTES + 5)), 1);
    close(fd);
    return byte;
}

static inline uint64_t blocks_of(const char *path)
{
    struct stat st;

    cr_assert_eq(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}
