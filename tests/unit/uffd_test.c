#include "vmm/snapshot/memory.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB UINT64_C(1048576)

#define PATIENT_NS (60 * UINT64_C(1000000000))

static struct guest_mem m;
static struct error e;
static char directory[] = "/tmp/mayfly-uffd-XXXXXX", path[64];
static int listener = -1;

/* What a handler was sent. */
static int stream = -1, fd = -1;
static char message[1024];

static void set_up(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    if (access("/dev/userfaultfd", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/userfaultfd on this host");
    cr_assert(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/socket", directory);
    strcpy(address.sun_path, path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    cr_assert_eq(listen(listener, 1), 0);
    cr_assert_eq(gmem_init(&m, 16, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
}

static void tear_down(void)
{
    gmem_fini(&m);
    unlink(path);
    rmdir(directory);
}

TestSuite(uffd, .init = set_up, .fini = tear_down);

static void accept_message(void)
{
    char control[CMSG_SPACE(2 * sizeof(int))];
    struct iovec bytes = { message, sizeof(message) - 1 };
    struct msghdr msg = { .msg_iov = &bytes,
                          .msg_iovlen = 1,
                          .msg_control = control,
                          .msg_controllen = sizeof(control) };
    ssize_t n;

    stream = accept(listener, NULL, NULL);
    n = recvmsg(stream, &msg, MSG_CMSG_CLOEXEC);
    cr_assert_gt(n, 0);
    message[n] = 0;
    cr_assert_eq(CMSG_FIRSTHDR(&msg)->cmsg_len, CMSG_LEN(sizeof(int)));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
}

/* Pages are filled with the number of theirs. */
static void serve(uint64_t address)
{
    const uint64_t page = (address - (uintptr_t)m.regions[0].host) / GMEM_PAGE_BYTES;
    uint64_t content[GMEM_PAGE_BYTES / 8];
    struct uffdio_copy copy = { .dst = address & ~(uint64_t)(GMEM_PAGE_BYTES - 1),
                                .src = (uintptr_t)content,
                                .len = GMEM_PAGE_BYTES };

    for (size_t i = 0; i < sizeof(content) / 8; i++)
        content[i] = page;
    cr_assert_eq(ioctl(fd, UFFDIO_COPY, &copy), 0, "%s", strerror(errno));
}

static uint64_t next_fault(void)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    struct uffd_msg msg;

    cr_assert_eq(poll(&p, 1, -1), 1);
    cr_assert_eq(read(fd, &msg, sizeof(msg)), sizeof(msg));
    cr_assert_eq(msg.event, UFFD_EVENT_PAGEFAULT);
    return msg.arg.pagefault.address;
}

static unsigned to_serve;

static void *handler(void *arg)
{
    (void)arg;
    for (; to_serve; to_serve--)
        serve(next_fault());
    return NULL;
}

static pthread_t start_handler(unsigned pages)
{
    pthread_t thread;

    to_serve = pages;
    cr_assert_eq(pthread_create(&thread, NULL, handler, NULL), 0);
    return thread;
}

/* Whose memory's description moves to another place then, as a machine's does. */
static struct uffd *open_it(void)
{
    struct guest_mem given = m;
    struct uffd *u = uffd_open(&given, path, NULL, &e);

    given = (struct guest_mem){ 0 };
    cr_assert(u, "%s", e.msg);
    accept_message();
    return u;
}

Test(uffd, tells_the_handler_where_memory_is)
{
    char expected[512];
    struct uffd *u = open_it();

    snprintf(expected, sizeof(expected),
             "[{\"base_host_virt_addr\":%llu,\"size\":16777216,\"offset\":0,\"page_size\":4096,"
             "\"page_size_kib\":4096}]",
             (unsigned long long)(uintptr_t)m.regions[0].host);
    cr_expect_str_eq(message, expected);
    cr_expect_eq(u->handler, getpid());
    cr_expect(uffd_close(u));
}

Test(uffd, tells_of_each_region)
{
    char expected[512];
    struct uffd *u;

    gmem_fini(&m);
    cr_assert_eq(gmem_init(&m, 4096, HUGE_PAGES_TRANSPARENT, &e), 0);
    u = open_it();
    snprintf(expected, sizeof(expected),
             "[{\"base_host_virt_addr\":%llu,\"size\":3221225472,\"offset\":0,\"page_size\":4096,"
             "\"page_size_kib\":4096},{\"base_host_virt_addr\":%llu,\"size\":1073741824,"
             "\"offset\":3221225472,\"page_size\":4096,\"page_size_kib\":4096}]",
             (unsigned long long)(uintptr_t)m.regions[0].host,
             (unsigned long long)(uintptr_t)m.regions[1].host);
    cr_expect_str_eq(message, expected);
    cr_expect(uffd_close(u));
}

Test(uffd, fetches_whole_pages_from_the_handler)
{
    struct uffd *u = open_it();
    pthread_t thread = start_handler(3);
    uint64_t value;

    cr_assert_eq(uffd_fetch(u, gpa(5 * GMEM_PAGE_BYTES - 1), GMEM_PAGE_BYTES + 2, &e), 0, "%s",
                 e.msg);
    pthread_join(thread, NULL);
    for (uint64_t page = 4; page <= 6; page++) {
        cr_assert_eq(gmem_get(&m, gpa(page * GMEM_PAGE_BYTES), &value), 0);
        cr_expect_eq(value, page);
    }
    cr_expect(uffd_close(u));
}

/* Until the thread waits for the page, too. */
static void wait_in_vain(struct uffd *u, gpa_t at)
{
    struct pollfd fault = { .fd = fd, .events = POLLIN };

    u->patience_ns = 1;
    do
        cr_assert_eq(uffd_fetch(u, at, 1, &e), -1);
    while (poll(&fault, 1, 0) == 0);
}

/* A VM of the handler's, whose device was to write pages 5, 6 and 9, and has written 6. */
static void write_as_a_device(struct snapshot_memory *s, struct kvm *kvm)
{
    if (access("/dev/kvm", R_OK | W_OK) < 0)
        cr_skip_test("no usable /dev/kvm on this host");
    cr_assert_eq(kvm_open(kvm, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(kvm_add_memory(kvm, &m, true, &e), 0, "%s", e.msg);
    cr_assert_eq(snapshot_memory_open(s, &m, kvm, SNAPSHOT_SOURCE_UFFD, false, NULL, NULL, &e), 0);
    gmem_wrote_(&m, m.regions[0].host + 5 * GMEM_PAGE_BYTES, 2 * GMEM_PAGE_BYTES);
    gmem_wrote_(&m, m.regions[0].host + 9 * GMEM_PAGE_BYTES, 1);
    serve((uintptr_t)m.regions[0].host + 6 * GMEM_PAGE_BYTES);
}

Test(uffd, fetches_what_a_snapshot_has_and_is_missing)
{
    struct kvm kvm = KVM_NONE;
    struct snapshot_memory s;
    struct uffd *u = open_it();
    pthread_t thread;
    uint64_t value;

    write_as_a_device(&s, &kvm);
    thread = start_handler(2);
    cr_assert_eq(snapshot_memory_fetch(&s, SNAPSHOT_DIFF, u, &e), 0, "%s", e.msg);
    pthread_join(thread, NULL);
    for (uint64_t page = 5; page <= 9; page += 4) {
        cr_assert_eq(gmem_get(&m, gpa(page * GMEM_PAGE_BYTES), &value), 0);
        cr_expect_eq(value, page);
    }
    thread = start_handler(16 * MIB / GMEM_PAGE_BYTES - 3);
    cr_assert_eq(snapshot_memory_fetch(&s, SNAPSHOT_FULL, u, &e), 0, "%s", e.msg);
    pthread_join(thread, NULL);
    cr_assert_eq(gmem_get(&m, gpa(16 * MIB - 8), &value), 0);
    cr_expect_eq(value, 16 * MIB / GMEM_PAGE_BYTES - 1);
    cr_expect(uffd_close(u));
    snapshot_memory_close(&s);
    kvm_close(&kvm);
}

Test(uffd, gives_up_on_a_handler_that_serves_nothing_and_names_it)
{
    char expected[256];
    struct uffd *u = open_it();

    u->patience_ns = 1;
    cr_assert_eq(uffd_fetch(u, gpa(0xdf000), 16, &e), -1);
    snprintf(expected, sizeof(expected),
             "the page fault handler at %s (process %d) has served no page for 10 seconds: guest "
             "memory at 0xdf000",
             path, getpid());
    cr_expect_str_eq(e.msg, expected);
    u->patience_ns = PATIENT_NS;
    cr_expect(uffd_close(u));
}

Test(uffd, goes_on_where_pages_come_late)
{
    struct uffd *u = open_it();
    pthread_t thread;
    uint64_t value;

    wait_in_vain(u, gpa(GMEM_PAGE_BYTES));
    u->patience_ns = PATIENT_NS;
    thread = start_handler(3);
    cr_assert_eq(uffd_fetch(u, gpa(8 * GMEM_PAGE_BYTES), 2 * GMEM_PAGE_BYTES, &e), 0, "%s", e.msg);
    pthread_join(thread, NULL);
    cr_assert_eq(gmem_get(&m, gpa(9 * GMEM_PAGE_BYTES), &value), 0);
    cr_expect_eq(value, 9);
    cr_assert_eq(gmem_get(&m, gpa(GMEM_PAGE_BYTES), &value), 0);
    cr_expect_eq(value, 1);
    cr_expect(uffd_close(u));
}

/* It waits for the old page still; of what it does not wait for, nobody says that. */
Test(uffd, names_the_page_that_is_not_served)
{
    struct uffd *u = open_it();

    wait_in_vain(u, gpa(7 * GMEM_PAGE_BYTES));
    cr_assert_eq(uffd_fetch(u, gpa(0), 1, &e), -1);
    cr_expect_not_null(strstr(e.msg, "guest memory at 0x7000"), "%s", e.msg);
    u->patience_ns = PATIENT_NS;
    cr_expect(uffd_close(u));
}

/* It registers memory again, as often as it is given up: as if that were not done. */
Test(uffd, closes_though_the_handler_clings)
{
    struct uffd *u = open_it();

    wait_in_vain(u, gpa(0));
    close(u->fd);
    u->fd = -1;
    cr_expect_not(uffd_close(u));
    cr_expect_eq(recv(stream, message, 1, 0), 0, "it sees the end");
}

Test(uffd, keeps_pages_missing_when_the_handler_is_gone)
{
    struct uffd *u = open_it();

    close(fd);
    close(stream);
    u->patience_ns = 1;
    cr_expect_eq(uffd_fetch(u, gpa(0), 1, &e), -1);
    u->patience_ns = PATIENT_NS;
    cr_expect(uffd_close(u));
}

Test(uffd, shows_the_handler_its_end)
{
    struct uffd *u = open_it();
    char byte;

    cr_expect_eq(recv(stream, &byte, 1, MSG_DONTWAIT), -1);
    cr_expect_eq(errno, EAGAIN);
    cr_expect(uffd_close(u));
    cr_expect_eq(recv(stream, &byte, 1, MSG_DONTWAIT), 0);
}

static void on_term(int signal)
{
    (void)signal;
    _exit(77);
}

/* A thread that waits for a page inside of a system call runs no handler of a signal. */
Test(uffd, ends_by_a_signal_while_the_main_thread_waits_in_the_kernel)
{
    int ready[2], status;
    char byte;
    pid_t pid;

    cr_assert_eq(pipe(ready), 0);
    pid = fork();
    if (pid == 0) {
        struct uffd *u = uffd_open(&m, path, NULL, &e);

        signal(SIGTERM, on_term);
        (void)!write(ready[1], u ? "y" : "n", 1);
        (void)!read(open("/dev/zero", O_RDONLY), m.regions[0].host, 1);
        _exit(1);
    }
    close(ready[1]);
    cr_assert_eq(read(ready[0], &byte, 1), 1);
    cr_assert_eq(byte, 'y');
    accept_message();
    next_fault();
    cr_assert_eq(kill(pid, SIGTERM), 0);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_expect(WIFEXITED(status));
    cr_expect_eq(WEXITSTATUS(status), 77);
}

static void expect_refusal(const char *where, const char *why)
{
    cr_expect_null(uffd_open(&m, where, NULL, &e));
    cr_expect_str_eq(e.msg, why);
}

#define CONNECT "Error creating guest memory from uffd: Failed to connect to UDS Unix stream: "

Test(uffd, refuses_where_nobody_listens)
{
    char too_long[200];

    memset(too_long, 'a', sizeof(too_long) - 1);
    too_long[sizeof(too_long) - 1] = 0;
    expect_refusal("/nowhere", CONNECT "No such file or directory (os error 2)");
    expect_refusal(too_long, CONNECT "path must be shorter than SUN_LEN");
    close(listener);
    expect_refusal(path, CONNECT "Connection refused (os error 111)");
}
