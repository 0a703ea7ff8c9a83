#include "vmm/snapshot/passes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Window: what the host is asked for, or is copied from a file, at once. A piece may have up to 63
 * pages more. */
#define WINDOW_PAGES 1024u
#define PIECE_PAGES  256u
#define FEW_PAGES    256u
#define PASSES_MAX   8u

static unsigned bits_of(uint64_t word)
{
    return (unsigned)__builtin_popcountll(word);
}

/* Puts what has changed into the set, which is empty, and out of log and marks. Where that fails
 * half way, p->changed has at least what was taken. */
static int take_changed(struct passes *p, struct error *e)
{
    const struct snapshot_memory *m = p->memory;
    uint64_t *words = p->set.words;
    const uint64_t count = p->set.pages / 64;

    if (kvm_get_dirty(m->kvm, m->mem, words, e) < 0)
        return -1;
    for (uint64_t i = 0; i < count; i++)
        p->changed[i] |= words[i];
    if (kvm_clear_dirty(m->kvm, m->mem, words, e) < 0)
        return -1;
    gmem_take_written(m->mem, words);
    p->count = 0;
    for (uint64_t i = 0; i < count; i++) {
        p->changed[i] |= words[i];
        p->count += bits_of(words[i]);
    }
    return 0;
}

static void fill_first(struct passes *p, enum snapshot_kind kind)
{
    const uint64_t *past = p->memory->past;
    uint64_t *words = p->set.words;

    switch (p->content) {
    case SNAPSHOT_ALL: memset(words, 0xff, p->set.pages / 8); break;
    case SNAPSHOT_PRESENT: memset(words, 0, p->set.pages / 8); break; /* see passes_next() */
    case SNAPSHOT_CHANGED:
        for (uint64_t i = 0; kind == SNAPSHOT_FULL && past && i < p->set.pages / 64; i++)
            words[i] |= past[i];
    }
    p->count = 0;
    for (uint64_t i = 0; i < p->set.pages / 64; i++)
        p->count += bits_of(words[i]);
}

int passes_begin(struct passes *p, struct snapshot_memory *m, enum snapshot_kind kind,
                 struct error *e)
{
    const uint64_t pages = gmem_pages(m->mem);

    *p = (struct passes){
        .memory = m,
        .content = snapshot_memory_content_(m, kind),
        .set = { .words = calloc(pages / 64, sizeof(*p->set.words)), .pages = pages },
        .changed = calloc(pages / 64, sizeof(*p->changed)),
        .number = 1,
    };
    if (!p->set.words || !p->changed) {
        passes_end(p, NULL);
        return fail_os(e, ENOMEM, "cannot make lists of the pages of guest memory");
    }
    if (take_changed(p, e) < 0) {
        passes_end(p, NULL);
        return -1;
    }
    fill_first(p, kind);
    return 0;
}

int passes_next(struct passes *p, uint64_t *from, uint64_t *to, struct error *e)
{
    const bool is_first = p->number == 1;
    const uint64_t window = p->next - p->next % WINDOW_PAGES;
    uint64_t end = p->set.pages, found = 0;

    if (p->next == p->set.pages)
        return 0;
    if (is_first && window + WINDOW_PAGES < end)
        end = window + WINDOW_PAGES;
    if (is_first && p->content == SNAPSHOT_PRESENT && p->next == window &&
        snapshot_memory_find_(p->memory, &p->set, window, end, e) < 0)
        return -1;
    *from = p->next;
    for (; p->next < end && found < PIECE_PAGES; p->next += 64)
        found += bits_of(p->set.words[p->next / 64]);
    *to = p->next;
    if (is_first && p->content == SNAPSHOT_PRESENT)
        p->count += found;
    return 1;
}

int passes_again(struct passes *p, struct error *e)
{
    p->before = p->count;
    p->number++;
    p->next = 0;
    memset(p->set.words, 0, p->set.pages / 8);
    return take_changed(p, e);
}

bool passes_are_enough(const struct passes *p)
{
    return p->number > 1 && (p->count <= FEW_PAGES || p->number == PASSES_MAX ||
                             (p->number > 2 && p->count >= p->before));
}

/* They count as changed, as before. */
static void put_back(const struct passes *p)
{
    for (uint64_t i = 0; p->changed && i < p->set.pages / 64; i++)
        if (p->changed[i])
            __atomic_fetch_or(&p->memory->mem->written[i], p->changed[i], __ATOMIC_RELAXED);
}

void passes_end(struct passes *p, const struct uuid *name)
{
    struct snapshot_memory *m = p->memory;

    if (name) {
        m->last = *name;
        m->torn = (struct uuid){ 0 };
    }
    if (name && m->forgets) {
        for (uint64_t i = 0; m->past && i < p->set.pages / 64; i++)
            m->past[i] |= p->changed[i];
        m->base = *name;
        m->is_whole = false;
    } else if (m->logs) {
        put_back(p);
    }
    free(p->set.words);
    free(p->changed);
    *p = (struct passes){ 0 };
}
