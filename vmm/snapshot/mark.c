#include "vmm/snapshot/mark.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#define WHOLE   " whole"
#define LAYER   " layer"
#define ON      " on "
#define MERGING " merging"

#define MARK_BYTES (UUID_TEXT + sizeof(LAYER ON MERGING) + UUID_TEXT)

/* What follows a word at the start of the text, or NULL. */
static const char *behind(const char *text, const char *word)
{
    const size_t n = strlen(word);

    return strncmp(text, word, n) == 0 ? text + n : NULL;
}

static void parse_mark(struct snapshot_mark *mark, const char *text)
{
    const char *whole, *layer, *base;

    if (!uuid_parse(&mark->name, text))
        return;
    text += UUID_TEXT - 1;
    whole = behind(text, WHOLE);
    layer = behind(text, LAYER);
    if (!whole && !layer)
        return;
    text = whole ? whole : layer;
    mark->is_whole = whole;
    base = layer ? behind(text, ON) : NULL;
    if (base) {
        mark->is_based = uuid_parse(&mark->base, base);
        if (!mark->is_based)
            return;
        text = base + UUID_TEXT - 1;
    }
    mark->is_merging = strcmp(text, MERGING) == 0;
    mark->is_legible = mark->is_merging || *text == '\0';
}

int snapshot_mark_get(int fd, struct snapshot_mark *mark)
{
    char text[MARK_BYTES] = "";
    const ssize_t n = fgetxattr(fd, SNAPSHOT_MARK, text, sizeof(text) - 1);

    *mark = (struct snapshot_mark){ .is_there = n >= 0 || errno == ERANGE };
    if (n < 0)
        return errno == ERANGE || errno == ENODATA || errno == EOPNOTSUPP ? 0 : -errno;
    parse_mark(mark, text);
    return 0;
}

int snapshot_mark_set(int fd, const struct snapshot_mark *mark)
{
    const bool is_based = !mark->is_whole && mark->is_based;
    char name[UUID_TEXT], base[UUID_TEXT] = "", text[MARK_BYTES];
    int n;

    uuid_text(&mark->name, name);
    if (is_based)
        uuid_text(&mark->base, base);
    n = snprintf(text, sizeof(text), "%s%s%s%s%s", name, mark->is_whole ? WHOLE : LAYER,
                 is_based ? ON : "", base, mark->is_merging ? MERGING : "");
    return fsetxattr(fd, SNAPSHOT_MARK, text, (size_t)n, 0) < 0 ? -errno : 0;
}
