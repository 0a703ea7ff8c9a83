/* JSON merge patch (RFC 7396), of one canonical text (see mmds/value.h) onto another. */
#pragma once

/* What `patch` makes of `target`: a canonical text, and a heap block that the caller frees. It is
 * at most as long as both together, and no deeper than the deeper. */
char *mmds_merge(const char *target, const char *patch);
