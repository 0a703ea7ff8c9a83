/* Prints rising numbers for ever, one a line: for tests of pause and resume. */
#include "runtime/boot.h"
#include "runtime/report.h"

void guest_main(void)
{
    for (uint64_t i = 0;; i++)
        print("%lu\n", i);
}
