/* Memory that is copied while its guest runs. */
#include "vmm/snapshot/passes.h"

#include "tests/unit/support/snapshot.h"

static struct saved_vm vm;
static struct passes p;
static struct uuid name;

static void tear_down(void)
{
    drop_vm(&vm);
    remove_pairs();
}

TestSuite(snapshot_passes, .init = make_directory, .fini = tear_down);

/* The pages that a pass has, piece by piece: none twice, none outside of its piece. */
static unsigned pages_of_pass(void)
{
    uint64_t from = 0, to = 0, end = 0;
    unsigned n = 0;

    while (passes_next(&p, &from, &to, &e) == 1) {
        cr_expect_eq(from, end);
        cr_assert_gt(to, from);
        for (uint64_t page = from; page < to; page++)
            n += page_set_has(&p.set, page);
        end = to;
    }
    cr_expect_eq(end, MEM_PAGES);
    return n;
}

static void begin(enum snapshot_kind kind)
{
    cr_assert_eq(passes_begin(&p, &vm.snapshot, kind, &e), 0, "%s", e.msg);
}

static unsigned go_again(void)
{
    cr_assert_eq(passes_again(&p, &e), 0, "%s", e.msg);
    return pages_of_pass();
}

static void end_well(void)
{
    cr_assert_eq(uuid_make(&name, &e), 0);
    passes_end(&p, &name);
}

Test(snapshot_passes, have_first_what_there_is_and_then_what_changes)
{
    boot_vm(&vm, true);
    write_page(&vm, 3, 'a');
    write_page(&vm, 300, 'a');
    begin(SNAPSHOT_FULL);
    cr_expect_eq(pages_of_pass(), 2);
    cr_expect_eq(p.count, 2);
    cr_expect_eq(go_again(), 0);
    write_page(&vm, 3, 'b');
    write_page(&vm, 4, 'b');
    cr_expect_eq(go_again(), 2);
    cr_expect(page_set_has(&p.set, 3) && page_set_has(&p.set, 4));
    cr_expect_eq(p.number, 3);
    cr_expect_eq(p.count, 2);
    end_well();
    begin(SNAPSHOT_DIFF);
    cr_expect_eq(pages_of_pass(), 0, "all is known as written");
    passes_end(&p, NULL);
}

/* What was touched where the host was already asked is had in the next pass. */
Test(snapshot_passes, miss_nothing_that_is_touched_in_the_first)
{
    uint64_t from, to;

    boot_vm(&vm, true);
    for (unsigned page = 0; page < 300; page++)
        write_page(&vm, page, 'a');
    begin(SNAPSHOT_FULL);
    cr_assert_eq(passes_next(&p, &from, &to, &e), 1);
    cr_expect_lt(to, 400, "a piece has a bound");
    write_page(&vm, 1, 'b');
    write_page(&vm, 400, 'b');
    while (passes_next(&p, &from, &to, &e) == 1)
        ;
    cr_expect_eq(go_again(), 2);
    end_well();
}

Test(snapshot_passes, that_fail_forget_nothing)
{
    boot_vm(&vm, true);
    cr_assert_eq(save(&vm, SNAPSHOT_FULL, "first"), 0, "%s", e.msg);
    write_page(&vm, 3, 'a');
    begin(SNAPSHOT_DIFF);
    cr_expect_eq(pages_of_pass(), 1);
    write_page(&vm, 4, 'a');
    cr_expect_eq(go_again(), 1);
    write_page(&vm, 5, 'a');
    passes_end(&p, NULL);
    begin(SNAPSHOT_DIFF);
    cr_expect_eq(pages_of_pass(), 3);
    passes_end(&p, NULL);
    cr_assert_eq(save(&vm, SNAPSHOT_DIFF, "second"), 0, "%s", e.msg);
    cr_expect(file_is(at("mem"), &vm.mem));
}

/* Of a machine that was loaded: what changed before stays known where nothing is forgotten, and
 * what a Full needs where something is. */
Test(snapshot_passes, of_a_loaded_machine_are_relative_to_the_file)
{
    for (bool tracks = false;; tracks = true) {
        boot_vm(&vm, false);
        write_page(&vm, 3, 'a');
        cr_assert_eq(save(&vm, SNAPSHOT_FULL, "first"), 0, "%s", e.msg);
        drop_vm(&vm);
        load_vm(&vm, tracks);
        write_page(&vm, 7, 'b');
        begin(SNAPSHOT_DIFF);
        cr_expect_eq(pages_of_pass(), 1);
        write_page(&vm, 8, 'b');
        cr_expect_eq(go_again(), 1);
        end_well();
        begin(SNAPSHOT_DIFF);
        cr_expect_eq(pages_of_pass(), tracks ? 0 : 2);
        end_well();
        begin(SNAPSHOT_FULL);
        cr_expect_eq(pages_of_pass(), 2);
        end_well();
        if (tracks)
            break;
        drop_vm(&vm);
    }
}

static void dirty_more(struct saved_vm *dirtied)
{
    write_page(dirtied, 3, 'b');
    write_page(dirtied, 500, 'b');
}

Test(snapshot_passes, make_a_file_that_is_memory_at_the_last)
{
    const struct snapshot_files f = pair_at("state", "mem", true);

    boot_vm(&vm, true);
    write_page(&vm, 3, 'a');
    cr_assert_eq(save_live(&vm, SNAPSHOT_FULL, "live", &f, dirty_more), 0, "%s", e.msg);
    cr_expect(file_is(at("mem"), &vm.mem));
    cr_expect_leq(blocks_of(at("mem")), 4 * GMEM_PAGE_BYTES);
    cr_expect_str_eq(mark_of(at("mem")), "whole");
    write_page(&vm, 9, 'c');
    cr_assert_eq(save_live(&vm, SNAPSHOT_DIFF, "live", &f, dirty_more), 0, "%s", e.msg);
    cr_expect(file_is(at("mem"), &vm.mem));
    drop_vm(&vm);
    load_vm(&vm, false);
    write_page(&vm, 10, 'd');
    cr_assert_eq(save_live(&vm, SNAPSHOT_FULL, "live", &f, dirty_more), 0, "%s", e.msg);
    cr_expect(file_is(at("mem"), &vm.mem), "with what the old file has");
}

/* A number of passes that goes down, or not. */
static bool enough_after(unsigned number, uint64_t before, uint64_t count)
{
    return passes_are_enough(
        &(struct passes){ .number = number, .before = before, .count = count });
}

Test(snapshot_passes, are_enough_when_they_are_small_no_smaller_or_many)
{
    cr_expect_not(enough_after(1, 0, 1), "one is never: a sync follows it");
    cr_expect(enough_after(2, 9999, 256));
    cr_expect_not(enough_after(2, 999, 9999), "the first was another kind");
    cr_expect_not(enough_after(3, 9999, 9998));
    cr_expect(enough_after(3, 9999, 9999));
    cr_expect_not(enough_after(7, 9999, 5000));
    cr_expect(enough_after(8, 9999, 5000));
}
