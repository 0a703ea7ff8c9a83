/* The smallest guest with something to say: its first instruction tells the boot timer. It starts by
 * PVH, in 32-bit mode without paging, where the timer's page can be reached at once. */
    .section .note.Xen, "a", @note
    .long 4, 4, 18              /* sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long _start

    .section .note.GNU-stack, "", @progbits
    .text
    .code32
    .globl _start
_start:
    movb $123, 0xc0000000
1:  hlt
    jmp 1b
