/* The power button, by GSI 3: says each time that it was pressed, and switches itself off after the
 * first, or with "presses=N" after the N-th. With "masked" it never listens. */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/power.h"
#include "runtime/report.h"

#define BUTTON_GSI 3

void guest_main(void)
{
    uint64_t wanted = boot_number("presses", 1);

    if (boot_has("masked")) {
        print("ready\n");
        halt();
    }
    ioapic_route(BUTTON_GSI);
    print("ready\n");
    for (uint64_t i = 1; i <= wanted; i++) {
        expect(wait_until(interrupt_count[VECTOR_GSI0 + BUTTON_GSI] >= i),
               "the_power_button_interrupts");
        print("pressed\n");
    }
    expect_equal(interrupt_count[VECTOR_GSI0 + BUTTON_GSI], wanted, "each_press_is_one_interrupt");
    print("done\n");
    soft_off();
}
