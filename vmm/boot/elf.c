/*
 * ELF kernels (System V ABI, chapters 4 and 5). A segment goes to its physical address; the note
 * "Xen" of type 18, where there is one, gives the PVH entry point (Xen, docs/misc/pvh.pandoc).
 */
#include <elf.h>
#include <inttypes.h>
#include <string.h>

#include "vmm/boot/boot_info.h"
#include "vmm/boot/kernel_file.h"
#include "vmm/kvm/layout.h"

#define PHDRS_MAX                64u /* kernels have about 5 */
#define NOTES_BYTES_MAX          (64u << 10)
#define XEN_ELFNOTE_PHYS32_ENTRY 18

struct elf {
    const struct kernel_file *file;
    Elf64_Ehdr header;
    Elf64_Phdr phdrs[PHDRS_MAX];
    bool has_pvh_entry;
    uint64_t pvh_entry;
};

static int read_elf_header(struct elf *elf, struct error *e)
{
    Elf64_Ehdr *h = &elf->header;

    if (!kernel_file_read(elf->file, 0, h, sizeof(*h)))
        return fail(e, ERR_INVALID, "Unable to read elf header");
    if (h->e_ident[EI_CLASS] != ELFCLASS64)
        return fail(e, ERR_INVALID, "Unable to read elf header: EI_CLASS is %u, not ELFCLASS64",
                    h->e_ident[EI_CLASS]);
    if (h->e_ident[EI_DATA] != ELFDATA2LSB)
        return fail(e, ERR_INVALID,
                    "Trying to load big-endian binary on little-endian machine: EI_DATA is %u",
                    h->e_ident[EI_DATA]);
    if (h->e_machine != EM_X86_64)
        return fail(e, ERR_INVALID, "Unable to read elf header: e_machine is %u, not EM_X86_64",
                    h->e_machine);
    if (h->e_phentsize != sizeof(Elf64_Phdr))
        return fail(e, ERR_INVALID, "Invalid program header size: e_phentsize is %u, not %zu",
                    h->e_phentsize, sizeof(Elf64_Phdr));
    if (h->e_phoff < sizeof(*h))
        return fail(e, ERR_INVALID,
                    "Invalid program header offset: e_phoff is %" PRIu64 ", inside the ELF header",
                    h->e_phoff);
    if (h->e_phnum == 0 || h->e_phnum > PHDRS_MAX)
        return fail(e, ERR_INVALID, "Unable to read program header: e_phnum is %u, not 1 to %u",
                    h->e_phnum, PHDRS_MAX);
    if (!kernel_file_read(elf->file, h->e_phoff, elf->phdrs, h->e_phnum * sizeof(Elf64_Phdr)))
        return fail(e, ERR_INVALID,
                    "Unable to read program header: e_phoff %" PRIu64
                    " and e_phnum %u leave the file of %" PRIu64 " bytes",
                    h->e_phoff, h->e_phnum, elf->file->bytes);
    return 0;
}

static bool is_loaded(const Elf64_Phdr *p)
{
    return p->p_type == PT_LOAD && p->p_memsz != 0;
}

static int check_segment(const struct elf *elf, unsigned i, const struct guest_mem *m,
                         struct error *e)
{
    const Elf64_Phdr *p = &elf->phdrs[i];
    uint64_t file_bytes = elf->file->bytes;

    if (p->p_filesz > p->p_memsz)
        return fail(e, ERR_INVALID,
                    "Unable to read kernel image: p_filesz %" PRIu64
                    " of segment %u exceeds p_memsz %" PRIu64,
                    p->p_filesz, i, p->p_memsz);
    if (p->p_offset > file_bytes || p->p_filesz > file_bytes - p->p_offset)
        return fail(e, ERR_INVALID,
                    "Unable to read kernel image: p_offset %" PRIu64 " and p_filesz %" PRIu64
                    " of segment %u leave the file of %" PRIu64 " bytes",
                    p->p_offset, p->p_filesz, i, file_bytes);
    if (!is_loaded(p))
        return 0;
    if (!gmem_has(m, gpa(p->p_paddr), p->p_memsz))
        return fail(e, ERR_INVALID,
                    "Unable to read kernel image: p_paddr 0x%" PRIx64 " and p_memsz 0x%" PRIx64
                    " of segment %u leave guest memory",
                    p->p_paddr, p->p_memsz, i);
    for (unsigned j = 0; j < i; j++) {
        const Elf64_Phdr *q = &elf->phdrs[j];

        if (is_loaded(q) && p->p_paddr < q->p_paddr + q->p_memsz &&
            q->p_paddr < p->p_paddr + p->p_memsz)
            return fail(e, ERR_INVALID,
                        "Invalid Program Header Address: p_paddr 0x%" PRIx64
                        " of segment %u overlaps segment %u",
                        p->p_paddr, i, j);
    }
    return 0;
}

/* Checks that all segments can be loaded. Every sum of addresses after it is free of wraps. */
static int check_segments(const struct elf *elf, const struct guest_mem *m, struct error *e)
{
    for (unsigned i = 0; i < elf->header.e_phnum; i++)
        if (elf->phdrs[i].p_type == PT_LOAD && check_segment(elf, i, m, e) < 0)
            return -1;
    return 0;
}

/* Below 1 MiB there are things of ours, which the kernel needs at its start. */
static int check_that_we_do_not_meet(const struct elf *elf, enum boot_protocol protocol,
                                     struct error *e)
{
    for (unsigned i = 0; i < elf->header.e_phnum; i++) {
        const Elf64_Phdr *p = &elf->phdrs[i];
        const char *ours =
            is_loaded(p) ? boot_info_meets(protocol, gpa(p->p_paddr), p->p_memsz) : NULL;

        if (ours)
            return fail(e, ERR_INVALID,
                        "Invalid Program Header Address: p_paddr 0x%" PRIx64
                        " and p_memsz 0x%" PRIx64 " of segment %u meet %s",
                        p->p_paddr, p->p_memsz, i, ours);
    }
    return 0;
}

static size_t align_up(size_t n, size_t to)
{
    return (n + to - 1) & ~(to - 1);
}

/* Looks for the PVH entry in a segment of n bytes of notes: header, name and descriptor, each of
 * the latter two padded. n is small, so the sums of 32-bit fields can't wrap. */
static int scan_notes(struct elf *elf, const uint8_t *notes, size_t n, size_t align,
                      struct error *e)
{
    size_t at = 0;

    while (n - at >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr note;
        size_t name = at + sizeof(note), desc;

        memcpy(&note, notes + at, sizeof(note));
        desc = align_up(name + note.n_namesz, align);
        if (desc > n || note.n_descsz > n - desc)
            return fail(e, ERR_INVALID,
                        "Unable to read note header: n_namesz %u "
                        "and n_descsz %u leave the segment of %zu bytes",
                        note.n_namesz, note.n_descsz, n);
        if (note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && note.n_namesz == sizeof("Xen") &&
            !memcmp(notes + name, "Xen", sizeof("Xen"))) {
            if (note.n_descsz != sizeof(uint32_t) && note.n_descsz != sizeof(uint64_t))
                return fail(e, ERR_INVALID, "Invalid PVH note header: n_descsz is %u, not 4 or 8",
                            note.n_descsz);
            memcpy(&elf->pvh_entry, notes + desc, note.n_descsz);
            elf->has_pvh_entry = true;
            return 0;
        }
        at = align_up(desc + note.n_descsz, align);
        if (at > n)
            break;
    }
    return 0;
}

static int read_notes(struct elf *elf, const Elf64_Phdr *p, struct error *e)
{
    autofree uint8_t *notes = NULL;

    if (p->p_filesz > NOTES_BYTES_MAX)
        return fail(e, ERR_INVALID,
                    "Unable to read note header: p_filesz %" PRIu64 " of the notes exceeds %u",
                    p->p_filesz, NOTES_BYTES_MAX);
    if (p->p_filesz == 0)
        return 0;
    notes = malloc(p->p_filesz);
    BUG_ON(!notes);
    if (!kernel_file_read(elf->file, p->p_offset, notes, p->p_filesz))
        return fail(e, ERR_INVALID,
                    "Unable to read note header: p_offset %" PRIu64 " and p_filesz %" PRIu64
                    " leave the file of %" PRIu64 " bytes",
                    p->p_offset, p->p_filesz, elf->file->bytes);
    return scan_notes(elf, notes, p->p_filesz, p->p_align == 8 ? 8 : 4, e);
}

static bool is_in_a_segment(const struct elf *elf, uint64_t address)
{
    for (unsigned i = 0; i < elf->header.e_phnum; i++) {
        const Elf64_Phdr *p = &elf->phdrs[i];

        if (is_loaded(p) && address >= p->p_paddr && address - p->p_paddr < p->p_memsz)
            return true;
    }
    return false;
}

/* Chooses the protocol. The entry of the other one is of no interest: it may be virtual. */
static int choose_entry(struct elf *elf, struct kernel_image *out, struct error *e)
{
    const char *field = "e_entry";
    uint64_t limit = LAYOUT_IDENTITY_MAP;

    for (unsigned i = 0; i < elf->header.e_phnum && !elf->has_pvh_entry; i++)
        if (elf->phdrs[i].p_type == PT_NOTE && read_notes(elf, &elf->phdrs[i], e) < 0)
            return -1;
    out->protocol = BOOT_LINUX64;
    out->entry = gpa(elf->header.e_entry);
    if (elf->has_pvh_entry) {
        field = "the PVH entry";
        limit = LAYOUT_ABOVE_4G;
        out->protocol = BOOT_PVH;
        out->entry = gpa(elf->pvh_entry);
    }
    if (!is_in_a_segment(elf, out->entry.v))
        return fail(e, ERR_INVALID,
                    "Invalid entry address: %s 0x%" PRIx64 " is in no loaded segment", field,
                    out->entry.v);
    if (out->entry.v >= limit)
        return fail(e, ERR_INVALID,
                    "Invalid entry address: %s 0x%" PRIx64 " is not below 0x%" PRIx64, field,
                    out->entry.v, limit);
    return 0;
}

int elf_load(struct guest_mem *m, const struct kernel_file *f, struct kernel_image *out,
             struct error *e)
{
    struct elf elf = { .file = f };
    struct image_part part, text = { .bytes = 0 };
    unsigned written = 0;

    if (read_elf_header(&elf, e) < 0 || check_segments(&elf, m, e) < 0 ||
        choose_entry(&elf, out, e) < 0 || check_that_we_do_not_meet(&elf, out->protocol, e) < 0)
        return -1;
    out->end = gpa(LAYOUT_HIGH_RAM); /* the initrd's place is not below */
    for (unsigned i = 0; i < elf.header.e_phnum; i++) {
        const Elf64_Phdr *p = &elf.phdrs[i];

        if (!is_loaded(p))
            continue;
        if (gmem_load_file(m, gpa(p->p_paddr), f->fd, p->p_offset, p->p_filesz, e) < 0)
            return fail_within(e, "Unable to read kernel image");
        part = (struct image_part){ gpa(p->p_paddr), p->p_filesz };
        if (p->p_flags & PF_W && part.bytes && written < IMAGE_PARTS_MAX - 1)
            out->written[written++] = part;
        else if (p->p_flags & PF_X && part.bytes > text.bytes)
            text = part;
        if (p->p_paddr + p->p_memsz > out->end.v)
            out->end = gpa(p->p_paddr + p->p_memsz);
    }
    out->written[written] = text;
    return 0;
}
