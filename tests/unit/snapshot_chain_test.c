/* Memory that is mapped from several files, and what is made of it. */
#include "vmm/snapshot/chain.h"

#include <errno.h>
#include <sys/file.h>

#include "tests/unit/support/snapshot.h"

#define EXPECT_OK(call) cr_expect_eq((call), 0, "%s", e.msg)

static struct saved_vm vm, loaded;
static struct snapshot_chain files;

static void tear_down(void)
{
    snapshot_chain_close(&files);
    drop_vm(&vm);
    drop_vm(&loaded);
    remove_pairs();
}

TestSuite(snapshot_chain, .init = make_directory, .fini = tear_down);

/* Of what save_layers() leaves, by the letters of their names: m(em), 1, 2, 3. */
static int open_chain(const char *letters, const char *state)
{
    const char *paths[1 + SNAPSHOT_LAYERS_MAX];
    char kept[1 + SNAPSHOT_LAYERS_MAX][PATH_MAX];
    struct uuid name;
    unsigned n = 0;

    for (; letters[n]; n++) {
        const char file[] = { 'm', 'e', 'm', letters[n], '\0' };

        strcpy(kept[n], at(letters[n] == 'm' ? "mem" : file));
        paths[n] = kept[n];
    }
    memcpy(&name, get(state), sizeof(name));
    snapshot_chain_close(&files);
    return snapshot_chain_open(&files, paths, n, &name, MEM_BYTES, &e);
}

/* A Full of pages 0 to 5 full of 'a', and layers that each change one more of them. */
static void save_layers(void)
{
    static const char *const names[][2] = { { "state1", "mem1" },
                                            { "state2", "mem2" },
                                            { "state3", "mem3" } };

    boot_vm(&vm, true);
    for (unsigned page = 0; page < 6; page++)
        write_page(&vm, page, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "full"));
    for (unsigned i = 0; i < 3; i++) {
        const struct snapshot_files f = pair_at(names[i][0], names[i][1], false);

        for (unsigned page = 0; page <= i; page++)
            write_page(&vm, page, (char)('b' + i));
        write_page(&vm, 100 + i, (char)('b' + i));
        EXPECT_OK(save_to(&vm, SNAPSHOT_DIFF, "layer", &f));
    }
}

static void load_chain(const char *letters, const char *state, bool tracks)
{
    struct uuid name;

    cr_assert_eq(open_chain(letters, state), 0, "%s", e.msg);
    memcpy(&name, get(state), sizeof(name));
    cr_assert_eq(snapshot_chain_map(&files, &loaded.mem, MEM_MIB, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_open(&loaded.kvm, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_add_memory(&loaded.kvm, &loaded.mem, true, &e), 0, "%s", e.msg);
    cr_assert_eq(snapshot_memory_open(&loaded.snapshot, &loaded.mem, &loaded.kvm,
                                      SNAPSHOT_SOURCE_FILE, tracks, &files, &name, &e),
                 0, "%s", e.msg);
    cr_expect_eq(files.count, 0, "they are the snapshot's now");
}

static bool same_memory(void)
{
    return memcmp(vm.mem.regions[0].host, loaded.mem.regions[0].host, MEM_BYTES) == 0;
}

Test(snapshot_chain, shows_each_layer_where_it_has_data)
{
    save_layers();
    load_chain("m123", "state3", false);
    cr_expect(same_memory());
    drop_vm(&loaded);
    load_chain("m1", "state1", false);
    cr_expect_str_eq((char *)loaded.mem.regions[0].host + 5, "b");
    cr_expect_str_eq((char *)loaded.mem.regions[0].host + GMEM_PAGE_BYTES + 5, "a");
}

static void expect_refused(const char *letters, const char *state, const char *why)
{
    cr_expect_eq(open_chain(letters, state), -1, "%s", letters);
    cr_expect_not_null(strstr(e.msg, why), "%s: %s", letters, e.msg);
    cr_expect_eq(files.count, 0);
}

Test(snapshot_chain, is_judged_by_its_marks)
{
    save_layers();
    EXPECT_OK(open_chain("m123", "state3"));
    expect_refused("m12", "state3", "mem2: Failed to load guest memory: its file is of snapshot ");
    expect_refused("m13", "state3", "mem3: Failed to load guest memory: its file is a layer upon ");
    expect_refused("m213", "state3", "mem2: Failed to load guest memory: its file is a layer upon");
    expect_refused("1", "state1", "only what changed since another snapshot");
    expect_refused("123", "state3", "only what changed since another snapshot");
    expect_refused("mm", "state", "is no layer");
    cr_assert_eq(truncate(at("mem2"), MEM_BYTES - 1), 0);
    expect_refused("m123", "state3", "mem2: Failed to restore guest memory");
    cr_assert_eq(truncate(at("mem2"), MEM_BYTES), 0);
    EXPECT_OK(open_chain("m123", "state3"));
}

Test(snapshot_chain, may_lack_marks)
{
    save_layers();
    cr_assert_eq(removexattr(at("mem1"), SNAPSHOT_MARK), 0);
    EXPECT_OK(open_chain("m123", "state3"));
    EXPECT_OK(open_chain("m13", "state3")); /* nobody can tell */
    cr_assert_eq(removexattr(at("mem3"), SNAPSHOT_MARK), 0);
    cr_assert_eq(removexattr(at("mem"), SNAPSHOT_MARK), 0);
    load_chain("m123", "state3", false);
    cr_expect(same_memory());
}

Test(snapshot_chain, keeps_others_from_writing_into_each_file)
{
    save_layers();
    EXPECT_OK(open_chain("m123", "state3"));
    for (unsigned i = 0; i < 4; i++) {
        static const char *const names[] = { "mem", "mem1", "mem2", "mem3" };
        const int other = open(at(names[i]), O_RDWR);

        cr_expect(flock(other, LOCK_EX | LOCK_NB) < 0 && errno == EAGAIN, "%s", names[i]);
        close(other);
    }
}

Test(snapshot_chain, is_merged_by_a_full)
{
    struct snapshot_files f;

    save_layers();
    load_chain("m123", "state3", false);
    f = pair_at("state4", "mem4", false);
    write_page(&loaded, 2, 'x');
    write_page(&loaded, 200, 'x');
    EXPECT_OK(save_to(&loaded, SNAPSHOT_FULL, "full", &f));
    cr_expect_str_eq(mark_of(at("mem4")), "whole");
    cr_expect(file_is(at("mem4"), &loaded.mem));
    cr_expect_leq(blocks_of(at("mem4")), 12 * GMEM_PAGE_BYTES, "holes stay holes");
}

Test(snapshot_chain, has_a_diff_for_its_next_layer)
{
    struct snapshot_files f;

    save_layers();
    load_chain("m123", "state3", true);
    f = pair_at("state4", "mem4", false);
    write_page(&loaded, 2, 'x');
    EXPECT_OK(save_to(&loaded, SNAPSHOT_DIFF, "diff", &f));
    cr_expect(is_layer(at("mem4")));
    memcpy(vm.mem.regions[0].host, loaded.mem.regions[0].host, MEM_BYTES);
    drop_vm(&loaded);
    load_chain("m1234", "state4", false);
    cr_expect(same_memory());
}

Test(snapshot_chain, takes_a_diff_into_its_last_file_only)
{
    struct snapshot_files f;

    save_layers();
    load_chain("m123", "state3", true);
    f = pair_at("state3", "mem3", false);
    write_page(&loaded, 2, 'x');
    write_page(&loaded, 300, 'x');
    EXPECT_OK(save_to(&loaded, SNAPSHOT_DIFF, "diff", &f));
    cr_expect(is_layer(at("mem3")));
    write_page(&loaded, 3, 'y');
    f = pair_at("state2", "mem2", false);
    cr_expect_eq(save_to(&loaded, SNAPSHOT_DIFF, "diff", &f), -1);
    cr_expect_not_null(strstr(e.msg, "the diff is to snapshot "), "%s", e.msg);
    cr_assert_eq(removexattr(at("mem2"), SNAPSHOT_MARK), 0);
    cr_expect_eq(save_to(&loaded, SNAPSHOT_DIFF, "diff", &f), -1);
    cr_expect_not_null(strstr(e.msg, "and from `layers` upon it"), "%s", e.msg);
    f = pair_at("state3", "mem3", false);
    EXPECT_OK(save_to(&loaded, SNAPSHOT_DIFF, "diff", &f));
    memcpy(vm.mem.regions[0].host, loaded.mem.regions[0].host, MEM_BYTES);
    drop_vm(&loaded);
    load_chain("m123", "state3", false);
    cr_expect(same_memory());
}

/* More pieces than the host would have mappings for: every other page of 512 MiB. */
Test(snapshot_chain, copies_where_there_are_too_many_pieces, .timeout = 300)
{
    const uint64_t mib = 512, pages = mib << 8;
    struct uuid name;
    int fd;

    boot_vm(&vm, true);
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "full"));
    memcpy(&name, get("state"), sizeof(name));
    cr_assert_eq(truncate(at("mem"), (off_t)mib << 20), 0);
    put("mem1", "");
    cr_assert_eq(truncate(at("mem1"), (off_t)mib << 20), 0);
    fd = open(at("mem1"), O_RDWR);
    for (uint64_t page = 0; page < pages; page += 2)
        cr_assert_eq(pwrite(fd, &page, sizeof(page), (off_t)(page * GMEM_PAGE_BYTES)), 8);
    close(fd);
    EXPECT_OK(open_chain("m1", "state"));
    EXPECT_OK(snapshot_chain_map(&files, &loaded.mem, mib, &e));
    for (uint64_t page = 0; page < pages; page += 2)
        cr_assert_eq(*(uint64_t *)(loaded.mem.regions[0].host + page * GMEM_PAGE_BYTES), page);
}
