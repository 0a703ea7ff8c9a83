#include "vmm/base/syslog.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/socket.h>
#include <syslog.h>

/* Nothing else is a socket of datagrams: systemd's journal takes a stream. */
static bool is_syslog(int fd)
{
    socklen_t bytes = sizeof(int);
    int type;

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) == 0 && type == SOCK_DGRAM;
}

void syslog_print_error(const char *instance_id, const char *text)
{
    if (is_syslog(STDERR_FILENO))
        fprintf(stderr, "<%d>mayfly: %s: Error: %s\n", LOG_DAEMON | LOG_ERR, instance_id, text);
    else
        fprintf(stderr, "Error: %s\n", text);
}

int syslog_leave(void)
{
    if (is_syslog(STDERR_FILENO) && dup2(STDOUT_FILENO, STDERR_FILENO) < 0)
        return -errno;
    return 0;
}
