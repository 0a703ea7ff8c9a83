#include "jailer/program.h"

#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[] = "/tmp/program-XXXXXX";
static char needed[PATH_MAX];

static bool needs(const void *bytes, size_t n)
{
    int fd = mkstemp(path);
    bool is_found;

    cr_assert(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    close(fd);
    is_found = program_interpreter(needed, path);
    unlink(path);
    return is_found;
}

static bool script_needs(const char *text)
{
    return needs(text, strlen(text));
}

Test(program, of_a_script_is_what_its_first_line_says)
{
    cr_expect(script_needs("#!/bin/sh\nexit"));
    cr_expect_str_eq(needed, "/bin/sh");
    strcpy(path + strlen(path) - 6, "XXXXXX");
    cr_expect(script_needs("#! \t/usr/bin/env python3\n"));
    cr_expect_str_eq(needed, "/usr/bin/env");
}

Test(program, of_a_script_without_a_name_is_none)
{
    cr_expect_not(script_needs("#!\n/bin/sh"));
}

Test(program, of_what_is_neither_is_none)
{
    cr_expect_not(script_needs(""));
}

Test(program, of_a_short_file_is_none)
{
    cr_expect_not(script_needs("\x7f"
                               "ELF\2"));
}

/* Two segments, the second the interpreter's. */
struct image {
    Elf64_Ehdr header;
    Elf64_Phdr segments[2];
    char interpreter[16];
};

static struct image dynamic(void)
{
    return (struct image){
        .header = { .e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64 },
                    .e_phoff = offsetof(struct image, segments),
                    .e_phentsize = sizeof(Elf64_Phdr),
                    .e_phnum = 2 },
        .segments = { { .p_type = PT_LOAD },
                      { .p_type = PT_INTERP,
                        .p_offset = offsetof(struct image, interpreter),
                        .p_filesz = sizeof("/lib/ld.so") } },
        .interpreter = "/lib/ld.so",
    };
}

Test(program, of_a_dynamic_one_is_its_loader)
{
    struct image i = dynamic();

    cr_expect(needs(&i, sizeof(i)));
    cr_expect_str_eq(needed, "/lib/ld.so");
}

Test(program, of_a_static_one_is_none)
{
    struct image i = dynamic();

    i.segments[1].p_type = PT_NOTE;
    cr_expect_not(needs(&i, sizeof(i)));
}

/* Sizes and places in the file that lie beyond it, or make no sense. */
#define CAN_NOT_BE_TOLD(name, change)                                                              \
    Test(program, cannot_be_told_of_##name)                                                        \
    {                                                                                              \
        struct image i = dynamic();                                                                \
                                                                                                   \
        change;                                                                                    \
        cr_expect_not(needs(&i, sizeof(i)));                                                       \
    }

CAN_NOT_BE_TOLD(a_table_beyond_the_end, i.header.e_phoff = 1 << 20)
CAN_NOT_BE_TOLD(a_table_before_the_beginning, i.header.e_phoff = UINT64_MAX)
CAN_NOT_BE_TOLD(another_size_of_entries, i.header.e_phentsize = 1)
CAN_NOT_BE_TOLD(a_name_beyond_the_end, i.segments[1].p_offset = sizeof(i))
CAN_NOT_BE_TOLD(a_name_longer_than_a_path, i.segments[1].p_filesz = PATH_MAX)
CAN_NOT_BE_TOLD(an_empty_name, i.segments[1].p_filesz = 0)
CAN_NOT_BE_TOLD(a_program_of_32_bits, i.header.e_ident[EI_CLASS] = ELFCLASS32)

Test(program, that_is_not_there_ends_the_jailer, .exit_code = 1)
{
    cr_redirect_stderr();
    program_interpreter(needed, "/none");
}
