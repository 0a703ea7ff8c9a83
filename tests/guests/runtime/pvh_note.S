/* The Xen note (type 18) that asks for the PVH protocol: linked into the "-pvh" guests only. */
        .section .note.pvh, "a", @note
        .balign 4
        .long   4
        .long   4
        .long   18
        .asciz  "Xen"
        .long   entry_pvh
        .section .note.GNU-stack, "", @progbits
