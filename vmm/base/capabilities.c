#include "vmm/base/capabilities.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The low words have it; of the high ones nothing is wanted. */
#define KEPT (UINT32_C(1) << CAP_DAC_OVERRIDE)

struct sets {
    struct __user_cap_data_struct words[_LINUX_CAPABILITY_U32S_3];
};

static int read_sets(struct sets *s)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };

    return syscall(SYS_capget, &header, s->words) < 0 ? -errno : 0;
}

static int write_sets(const struct sets *s)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };

    return syscall(SYS_capset, &header, s->words) < 0 ? -errno : 0;
}

int capabilities_hand_down(void)
{
    struct sets s = { 0 };
    int ret = read_sets(&s);

    s.words[0].inheritable = s.words[0].permitted & KEPT;
    s.words[1].inheritable = 0;
    return ret < 0 ? ret : write_sets(&s);
}

int capabilities_limit(bool keep)
{
    struct sets s = { 0 };
    int ret = keep ? read_sets(&s) : 0;
    uint32_t low = s.words[0].inheritable & KEPT;

    s = (struct sets){ { { .effective = low, .permitted = low, .inheritable = low } } };
    return ret < 0 ? ret : write_sets(&s);
}

int capabilities_give_up(void)
{
    const struct sets none = { 0 };
    struct sets s;
    int ret = read_sets(&s);

    if (ret < 0 || s.words[0].permitted != KEPT || s.words[1].permitted != 0)
        return ret;
    return write_sets(&none);
}
