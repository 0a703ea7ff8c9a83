/*
 * Static probes for perf, bpftrace and SystemTap: a nop in the code, and a note beside the program
 * that says where it is and where its arguments are at that moment. Nothing else until somebody
 * attaches, who replaces the nop by a trap; notes are not loaded. Any thread, any handler.
 *
 * The note is of SystemTap's third version (its wiki: UserSpaceProbeImplementation), as <sys/sdt.h>
 * makes it; of that header we would use this much. Arguments are integers or pointers that are at
 * hand anyway; docs/observability.md names the probes.
 */
#pragma once

#include <stdint.h>

#define PROBE_(name, places, ...)                                                                  \
    __asm__ volatile("990: nop\n"                                                                  \
                     ".pushsection .note.stapsdt, \"?\", \"note\"\n"                               \
                     ".balign 4\n"                                                                 \
                     ".4byte 992f - 991f, 994f - 993f, 3\n"                                        \
                     "991: .asciz \"stapsdt\"\n"                                                   \
                     "992: .balign 4\n"                                                            \
                     "993: .8byte 990b, _.stapsdt.base, 0\n"                                       \
                     ".asciz \"mayfly\"\n"                                                         \
                     ".asciz \"" #name "\"\n"                                                      \
                     ".asciz \"" places "\"\n"                                                     \
                     "994: .balign 4\n"                                                            \
                     ".popsection\n"                                                               \
                     ".ifndef _.stapsdt.base\n"                                                    \
                     ".pushsection .stapsdt.base, \"aG\", \"progbits\", .stapsdt.base, comdat\n"   \
                     ".weak _.stapsdt.base\n"                                                      \
                     ".hidden _.stapsdt.base\n"                                                    \
                     "_.stapsdt.base: .space 1\n"                                                  \
                     ".size _.stapsdt.base, 1\n"                                                   \
                     ".popsection\n"                                                               \
                     ".endif\n"                                                                    \
                     :                                                                             \
                     : __VA_ARGS__)

#define PROBE2(name, a, b) PROBE_(name, "8@%0 8@%1", "nor"((uint64_t)(a)), "nor"((uint64_t)(b)))
#define PROBE3(name, a, b, c)                                                                      \
    PROBE_(name, "8@%0 8@%1 8@%2", "nor"((uint64_t)(a)), "nor"((uint64_t)(b)), "nor"((uint64_t)(c)))
