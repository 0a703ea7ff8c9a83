#include "jailer/check.h"

int host_check(void)
{
    return 0;
}
