#include "power.h"

#include "io.h"

_Noreturn void halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt" ::: "memory");
}

_Noreturn void power_off(void)
{
    outb(0x64, 0xfe);
    halt();
}

_Noreturn void soft_off(void)
{
    outb(0x600, 5 << 2 | 1 << 5);
    halt();
}

_Noreturn void triple_fault(void)
{
    static const uint8_t no_table[10];

    __asm__ volatile("lidt %0; ud2" : : "m"(no_table));
    halt();
}
