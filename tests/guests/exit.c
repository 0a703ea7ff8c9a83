/* The ways a guest ends, by command line: "triple_fault", "reset" or "off", else it halts for ever;
 * by the first vCPU or, with "second", by the second. */
#include "runtime/boot.h"
#include "runtime/power.h"
#include "runtime/report.h"
#include "runtime/smp.h"

static void end(uint32_t apic_id)
{
    (void)apic_id;
    print("ending\n");
    if (boot_has("triple_fault"))
        triple_fault();
    if (boot_has("reset"))
        power_off();
    if (boot_has("off"))
        soft_off();
    halt();
}

void guest_main(void)
{
    if (boot_has("second"))
        smp_start(1, end);
    else
        end(0);
    halt();
}
