#include "api/server.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "vmm/base/log.h"

#define VERSION "GET /version HTTP/1.1\r\n\r\n"
#define ANSWER                                                                                     \
    "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"                       \
    "Content-Type: application/json\r\nContent-Length: 32\r\n\r\n"                                 \
    "{\"firecracker_version\":\"1.17.0\"}"

static struct loop loop;
static struct api *api;
static struct error e;
static char directory[] = "/tmp/mayfly-server-XXXXXX";
static char path[64];

/* In the C library's place: a socket that takes all but `held_back` bytes, the first time, and a
 * process that has descriptors left or not. */
static size_t held_back;
static unsigned accepts;
static bool is_out_of_descriptors;

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct iovec parts[2];
    struct msghdr less = { .msg_iov = parts, .msg_iovlen = 2 };
    struct iovec *last = &parts[1];

    if (held_back == 0) /* also the test library's own */
        return syscall(SYS_sendmsg, fd, message, flags);
    memcpy(parts, message->msg_iov, sizeof(parts));
    for (; held_back > 0; held_back--) {
        if (last->iov_len == 0)
            last = parts;
        last->iov_len--;
    }
    return syscall(SYS_sendmsg, fd, &less, flags);
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    accepts++;
    if (is_out_of_descriptors) {
        errno = EMFILE;
        return -1;
    }
    return (int)syscall(SYS_accept4, fd, address, length, flags);
}

static void set_up(void)
{
    static const struct vm_options options = { .id = "test" };
    static struct vm *vm;

    strcpy(directory, "/tmp/mayfly-server-XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/api", directory);
    log_set_options((struct log_options){ .level = LOG_OFF });
    cr_assert_eq(loop_init(&loop, &e), 0);
    vm = vm_new(&loop, &options);
    api = api_open(&loop, vm, path, 100, &e);
    cr_assert_not_null(api, "%s", e.msg);
}

static void tear_down(void)
{
    api_close(api);
    unlink(path);
    rmdir(directory);
}

TestSuite(server, .init = set_up, .fini = tear_down);

static int connect_client(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strcpy(address.sun_path, path);
    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

/* Turns until nothing is left to be done; how often. */
static unsigned turn(void)
{
    unsigned turns = 0;

    while (loop_turn(&loop, 0))
        cr_assert_lt(++turns, 1000, "the loop spins");
    return turns;
}

static void say(int fd, const char *text)
{
    cr_assert_eq((size_t)send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* What has come, without waiting; "-" at the end of the connection. */
static const char *hear(int fd)
{
    static char text[8192];
    ssize_t n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT);

    if (n == 0)
        return "-";
    text[n < 0 ? 0 : n] = '\0';
    return text;
}

Test(server, answers_one_request_after_the_other)
{
    int fd = connect_client();

    for (unsigned i = 0; i < 3; i++) {
        say(fd, VERSION);
        turn();
        cr_expect_str_eq(hear(fd), ANSWER);
    }
}

Test(server, answers_nothing_before_the_last_byte_of_the_answer_before_has_left)
{
    for (size_t n = 1; n < sizeof(ANSWER) - 1; n++) {
        int fd = connect_client();

        held_back = n;
        say(fd, VERSION VERSION);
        turn();
        cr_expect_str_eq(hear(fd), ANSWER ANSWER, "%zu bytes held back", n);
        close(fd);
        turn();
    }
}

Test(server, closes_what_ends_itself_and_forgets_what_it_held)
{
    int fd = connect_client();

    say(fd, "PUT /machine-config HTTP/1.1\r\nContent-Length: 50\r\n\r\n{");
    turn();
    close(fd);
    turn();
    for (unsigned i = 0; i < 2 * API_CONNECTIONS_MAX; i++) {
        fd = connect_client();
        say(fd, VERSION);
        shutdown(fd, SHUT_WR);
        turn();
        cr_expect_str_eq(hear(fd), ANSWER);
        cr_expect_str_eq(hear(fd), "-");
        close(fd);
    }
}

Test(server, closes_after_the_answer_where_the_client_says_so)
{
    int fd = connect_client();

    say(fd, "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n" VERSION);
    turn();
    cr_expect(strstr(hear(fd), "\r\nConnection: close\r\nContent-Type"));
    cr_expect_str_eq(hear(fd), "-", "and the second request has no answer");
    close(fd);
    turn();
}

Test(server, takes_a_100_for_no_last_answer)
{
    int fd = connect_client();

    say(fd, "PUT /machine-config HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    turn();
    cr_expect_str_eq(hear(fd), "HTTP/1.1 100 \r\nServer: Firecracker API\r\n"
                               "Connection: keep-alive\r\n\r\n");
    say(fd, "{}");
    turn();
    cr_expect(
        strstr(hear(fd), "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: close\r\n"));
    cr_expect_str_eq(hear(fd), "-");
}

/* Closed at once, it would be told of a broken connection instead of the reason. */
Test(server, lets_a_client_that_still_sends_read_the_last_answer)
{
    int fd = connect_client();
    unsigned sent = 0;

    say(fd, "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    while (sent++ < 1000) {
        turn();
        say(fd, "8\r\n12345678\r\n");
    }
    cr_expect(strstr(hear(fd), "send Content-Length."));
    cr_expect_str_eq(hear(fd), "-");
}

Test(server, gives_the_place_of_a_connection_that_is_over_to_another)
{
    int clients[API_CONNECTIONS_MAX], fd;

    for (unsigned i = 0; i < API_CONNECTIONS_MAX; i++) {
        clients[i] = connect_client();
        turn();
    }
    fd = connect_client();
    turn();
    cr_expect(strstr(hear(fd), "HTTP/1.1 503 "), "none is over");
    cr_expect_str_eq(hear(fd), "-");
    close(fd);
    say(clients[4], "GET /version HTTP/1.0\r\n\r\n");
    turn();
    for (unsigned i = 0; i < 2; i++) {
        fd = connect_client();
        say(fd, VERSION);
        turn();
        cr_expect(strstr(hear(fd), i == 0 ? "HTTP/1.1 200 " : "HTTP/1.1 503 "));
    }
    cr_expect_eq(send(clients[4], "x", 1, MSG_NOSIGNAL), -1, "it is closed");
    say(clients[3], VERSION);
    turn();
    cr_expect_str_eq(hear(clients[3]), ANSWER, "the others stay");
}

Test(server, sleeps_while_it_is_out_of_descriptors)
{
    int first, second;

    turn();
    is_out_of_descriptors = true;
    accepts = 0;
    first = connect_client();
    turn();
    cr_expect_leq(accepts, 2, "%u times", accepts);
    is_out_of_descriptors = false;
    second = connect_client();
    say(first, VERSION);
    say(second, VERSION);
    turn();
    cr_expect_str_eq(hear(first), ANSWER);
    cr_expect_str_eq(hear(second), ANSWER);
}

static void expect_no_socket_at(const char *where, const char *message)
{
    cr_expect_null(api_open(&loop, NULL, where, 100, &e));
    cr_expect_str_eq(e.msg, message);
}

Test(server, says_why_it_can_not_listen)
{
    char longest[128], expected[512];

    expect_no_socket_at("", "Failed to bind and run the HTTP server: IO error: the path is empty");
    snprintf(expected, sizeof(expected),
             "Failed to open the API socket at: %s. Check that it is not already used.", path);
    expect_no_socket_at(path, expected);
    expect_no_socket_at("/none/x", "Failed to bind and run the HTTP server: IO error: /none/x: No "
                                   "such file or directory (os error 2)");
    memset(longest, 'x', sizeof(longest));
    longest[108] = '\0';
    snprintf(expected, sizeof(expected),
             "Failed to bind and run the HTTP server: IO error: %s: path must be shorter than "
             "SUN_LEN",
             longest);
    expect_no_socket_at(longest, expected);
}
