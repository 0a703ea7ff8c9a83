/*
 * How a test guest starts, on the first vCPU and on the others, and how interrupts reach C.
 *
 * Two ways in: 64-bit Linux protocol (long mode, rsi = zero page) and PVH (32-bit protected mode,
 * ebx = start info). Both note what they found in entry_state, then continue in guest_start() with
 * page tables, GDT and stack of our own. The page tables are data of the image: memory from 0 to
 * 8 GiB is mapped to itself in 2 MiB pages, the MMIO gap uncached.
 */

#define CODE32 0x08
#define CODE64 0x10
#define DATA   0x18

/* Members of struct entry_state in boot.h. */
#define STATE_INFO   8
#define STATE_RSP    16
#define STATE_CR0    24
#define STATE_CR4    32
#define STATE_RFLAGS 40

        .section .head, "ax"
        .code32
        .globl entry_pvh
entry_pvh:
        movl    %esp, entry_state + STATE_RSP
        movl    %ebx, entry_state + STATE_INFO
        movl    $1, entry_state
        movl    $stack_top, %esp
        pushfl
        popl    %eax
        movl    %eax, entry_state + STATE_RFLAGS
        movl    %cr0, %eax
        movl    %eax, entry_state + STATE_CR0
        movl    %cr4, %eax
        movl    %eax, entry_state + STATE_CR4
        lgdtl   gdt_pointer
        movl    $start64, %ebp
        ljmpl   $CODE32, $to_long_mode

/* A bzImage is entered 0x200 bytes behind its load address: so is every test guest. */
        .org    0x200
        .code64
        .globl entry_linux64
entry_linux64:
        movq    %rsp, entry_state + STATE_RSP
        movq    %rsi, entry_state + STATE_INFO
        movq    $0, entry_state
        movl    $stack_top, %esp
        pushfq
        popq    %rax
        movq    %rax, entry_state + STATE_RFLAGS
        movq    %cr0, %rax
        movq    %rax, entry_state + STATE_CR0
        movq    %cr4, %rax
        movq    %rax, entry_state + STATE_CR4
        lgdt    gdt_pointer
        movl    $page_tables, %eax
        movq    %rax, %cr3
        pushq   $CODE64
        pushq   $1f
        lretq
1:      movl    $DATA, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
start64:
        movl    $stack_top, %esp
        xorl    %ebp, %ebp
        call    guest_start
1:      hlt
        jmp     1b

        .text
/* From 32-bit protected mode with our GDT to long mode, continuing at ebp. Keeps ebx. */
        .code32
to_long_mode:
        movl    $DATA, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %cr4, %eax
        orl     $0x20, %eax                     /* PAE */
        movl    %eax, %cr4
        movl    $page_tables, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx               /* EFER */
        rdmsr
        orl     $0x100, %eax                    /* LME */
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000001, %eax               /* PG, PE */
        movl    %eax, %cr0
        ljmpl   $CODE64, $1f
        .code64
1:      jmp     *%rbp

/* What a vCPU runs after INIT and SIPI: real mode, copied to smp.h's SMP_TRAMPOLINE. */
        .code16
        .globl ap_trampoline, ap_trampoline_end
ap_trampoline:
        cli
        lgdtl   %cs:(ap_gdt_pointer - ap_trampoline)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $CODE32, $ap_entry32
ap_gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
ap_trampoline_end:

        .code32
ap_entry32:
        movl    $ap_entry64, %ebp
        jmp     to_long_mode
        .code64
ap_entry64:
        movq    ap_stack_top, %rsp
        xorl    %ebp, %ebp
        call    ap_start
1:      hlt
        jmp     1b

/* One stub a vector, 16 bytes each; pushes what the CPU leaves out: error code and vector. */
        .balign 16
        .globl interrupt_stubs
interrupt_stubs:
        .set    vector, 0
        .rept   64
        .balign 16
        .if     !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
        pushq   $0
        .endif
        pushq   $vector
        jmp     interrupt_common
        .set    vector, vector + 1
        .endr

interrupt_common:
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rbx
        pushq   %rbp
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    120(%rsp), %rdi                 /* vector */
        movq    128(%rsp), %rsi                 /* error code */
        movq    136(%rsp), %rdx                 /* rip */
        cld
        call    interrupt_dispatch
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rbp
        popq    %rbx
        popq    %rdx
        popq    %rcx
        popq    %rax
        addq    $16, %rsp
        iretq

        .section .data
        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff              /* CODE32 */
        .quad   0x00af9b000000ffff              /* CODE64 */
        .quad   0x00cf93000000ffff              /* DATA */
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .quad   gdt

        .balign 4096
page_tables:
        .quad   directory_pointers + 3
        .fill   511, 8, 0
directory_pointers:
        .set    i, 0
        .rept   8
        .quad   directories + i * 4096 + 3
        .set    i, i + 1
        .endr
        .fill   504, 8, 0
directories:
        .set    i, 0
        .rept   8 * 512
        .if     i >= 3 * 512 && i < 4 * 512
        .quad   i * 0x200000 + 0x93             /* PCD: the MMIO gap */
        .else
        .quad   i * 0x200000 + 0x83
        .endif
        .set    i, i + 1
        .endr

        .section .bss
        .balign 16
        .skip   16384
stack_top:

        .section .note.GNU-stack, "", @progbits
