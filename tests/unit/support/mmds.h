/* What a guest sends to the metadata service, and a service to send it to. */
#pragma once

#include "tests/unit/support/criterion.h"
