#include "report.h"

#include <stdarg.h>

#include "interrupts.h"
#include "io.h"
#include "power.h"

#define COM1     0x3f8
#define COM1_LSR 0x3fd

void *memset(void *to, int value, size_t n)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(n) : "a"(value) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(n) : : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;

    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

size_t strlen(const char *s)
{
    size_t n = 0;
    while (s[n] != '\0')
        n++;
    return n;
}

static void put(const char *s)
{
    for (; *s != '\0'; s++)
        outb(COM1, (uint8_t)*s);
}

static void put_number(uint64_t value, unsigned base)
{
    char digits[21];
    char *at = digits + sizeof(digits) - 1;

    *at = '\0';
    do {
        *--at = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    put(at);
}

static void put_argument(char kind, bool wide, va_list *args)
{
    char c[2] = { kind, '\0' };
    int64_t number;

    switch (kind) {
    case 's': put(va_arg(*args, const char *)); return;
    case 'c':
        c[0] = (char)va_arg(*args, int);
        put(c);
        return;
    case 'u':
    case 'x':
        put_number(wide ? va_arg(*args, uint64_t) : va_arg(*args, uint32_t), kind == 'u' ? 10 : 16);
        return;
    case 'd':
        number = wide ? va_arg(*args, int64_t) : va_arg(*args, int32_t);
        put(number < 0 ? "-" : "");
        put_number(number < 0 ? -(uint64_t)number : (uint64_t)number, 10);
        return;
    default: put(c);
    }
}

static void vprint(const char *fmt, va_list *args)
{
    for (; *fmt != '\0'; fmt++) {
        if (*fmt != '%') {
            outb(COM1, (uint8_t)*fmt);
            continue;
        }
        bool wide = *++fmt == 'l';
        if (wide)
            fmt++;
        put_argument(*fmt, wide, args);
    }
}

void print(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vprint(fmt, &args);
    va_end(args);
}

bool expect(bool holds, const char *name)
{
    if (holds)
        print("ok %s\n", name);
    else
        print("not ok %s: it does not hold\n", name);
    return holds;
}

bool expect_equal(uint64_t got, uint64_t wanted, const char *name)
{
    if (got == wanted)
        print("ok %s\n", name);
    else
        print("not ok %s: got 0x%lx, wanted 0x%lx\n", name, got, wanted);
    return got == wanted;
}

void wait_for_host(const char *what)
{
    print("waiting %s\n", what);
    if (!wait_until((inb(COM1_LSR) & 1) != 0))
        give_up(what, "the host sent nothing");
    (void)inb(COM1);
}

_Noreturn void give_up(const char *name, const char *why)
{
    print("not ok %s: %s\n", name, why);
    power_off();
}
