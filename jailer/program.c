#include "jailer/program.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "jailer/die.h"

/* The first line of a script: #!INTERPRETER ARGUMENT */
static bool read_script(char *out, const char *line)
{
    size_t blanks = strspn(line + 2, " \t"), n = strcspn(line + 2 + blanks, " \t\n");

    memcpy(out, line + 2 + blanks, n);
    out[n] = '\0';
    return n > 0;
}

static bool read_elf(char *out, int fd, const Elf64_Ehdr *header)
{
    Elf64_Phdr segment;

    for (unsigned i = 0; i < header->e_phnum && header->e_phentsize == sizeof(segment); i++) {
        off_t at = (off_t)(header->e_phoff + i * sizeof(segment));

        if (pread(fd, &segment, sizeof(segment), at) != sizeof(segment))
            return false;
        if (segment.p_type != PT_INTERP)
            continue;
        if (segment.p_filesz < 2 || segment.p_filesz >= PATH_MAX)
            return false;
        out[segment.p_filesz] = '\0';
        return pread(fd, out, segment.p_filesz, (off_t)segment.p_offset) ==
               (ssize_t)segment.p_filesz;
    }
    return false;
}

bool program_interpreter(char *out, const char *path)
{
    char start[256] = "";
    Elf64_Ehdr header;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd < 0 ? -1 : pread(fd, start, sizeof(start) - 1, 0);
    bool is_found = false;

    if (fd < 0 && errno != EACCES)
        die_os(errno, "Failed to open %s", path);
    memcpy(&header, start, sizeof(header));
    if (n >= 2 && memcmp(start, "#!", 2) == 0)
        is_found = read_script(out, start);
    else if (n >= (ssize_t)sizeof(header) && memcmp(start, ELFMAG, SELFMAG) == 0 &&
             header.e_ident[EI_CLASS] == ELFCLASS64)
        is_found = read_elf(out, fd, &header);
    if (fd >= 0)
        close(fd);
    return is_found;
}
