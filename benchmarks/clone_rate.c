/*
 * How long clones of one snapshot take that are all started at once: each from exec, or its
 * jailer's, to its guest's first byte on the console. Clones stay until the last has spoken. With a
 * jailer each has a jail as in start_rate.c.
 *
 * usage: clone-rate BINARY STATE MEMORY DIRECTORY COUNT [JAILER]. Prints a line for each clone, in
 * microseconds since all were let go: exec, API connected, load answered, first byte.
 * DIRECTORY is on the file system of the other files.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "clock.h"
#include "vmm_client.h"

enum { EXEC, CONNECTED, LOADED, SPOKE, STEPS };

static const char *binary, *state, *memory, *directory, *jailer;

/* Loads the snapshot, and waits for the guest. */
static void load(const char *socket_path, const char *state_path, const char *memory_path,
                 int console, uint64_t *reached)
{
    char body[4096], byte;
    int fd = connect_to(socket_path);

    reached[CONNECTED] = now_ns();
    snprintf(body, sizeof(body),
             "{\"snapshot_path\": \"%s\", \"resume_vm\": true, "
             "\"mem_backend\": {\"backend_type\": \"File\", \"backend_path\": \"%s\"}}",
             state_path, memory_path);
    put(fd, "/snapshot/load", body);
    reached[LOADED] = now_ns();
    check(read(console, &byte, 1) == 1, "the guest's first byte");
    reached[SPOKE] = now_ns();
}

static pid_t clone_plain(unsigned i, const int *console, uint64_t *reached)
{
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    char *const argv[] = { (char *)binary, "--api-sock", path, NULL };
    pid_t pid;

    snprintf(path, sizeof(path), "%s/%u", directory, i);
    reached[EXEC] = now_ns();
    pid = spawn(argv, console[1]);
    load(path, state, memory, console[0], reached);
    return pid;
}

static pid_t clone_jailed(unsigned i, const int *console, uint64_t *reached)
{
    const char *const files[] = { state, memory, NULL };
    char id[16], root[400], path[512];
    pid_t pid;

    snprintf(id, sizeof(id), "%u", i);
    reached[EXEC] = now_ns();
    make_jail(root, sizeof(root), directory, binary, id, files);
    snprintf(path, sizeof(path), "%s/run/firecracker.socket", root);
    pid = spawn_jailed(jailer, binary, id, directory, console[1]);
    load(path, strrchr(state, '/'), strrchr(memory, '/'), console[0], reached);
    return pid;
}

/* A pipe whose write end only the parent has: its readers wait until that is closed. */
static void wait_at(const int *gate)
{
    char byte;

    close(gate[1]);
    check(read(gate[0], &byte, 1) == 0, "a gate");
}

/* Makes one clone once `go` opens, says so by one byte, and kills it once `end` opens. */
static void work(unsigned i, const int *go, const int *end, int done, uint64_t *reached)
{
    int console[2];
    pid_t pid;

    check(pipe2(console, O_CLOEXEC) == 0, "pipe");
    wait_at(go);
    pid = (jailer ? clone_jailed : clone_plain)(i, console, reached);
    check(write(done, "", 1) == 1 && close(done) == 0, "to say so");
    wait_at(end);
    check(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid, "the VMM");
}

static void run(unsigned count, uint64_t (*reached)[STEPS])
{
    int go[2], end[2], done[2], status;
    uint64_t begin;
    char byte;

    check(pipe2(go, O_CLOEXEC) == 0 && pipe2(end, O_CLOEXEC) == 0 && pipe2(done, O_CLOEXEC) == 0,
          "pipes");
    for (unsigned i = 0; i < count; i++)
        if (fork() == 0) {
            close(done[0]);
            work(i, go, end, done[1], reached[i]);
            _exit(0);
        }
    close(done[1]);
    begin = now_ns();
    close(go[1]);
    for (unsigned i = 0; i < count; i++)
        check(read(done[0], &byte, 1) == 1, "a worker");
    close(end[1]);
    while (wait(&status) > 0)
        check(status == 0, "a worker");
    for (unsigned i = 0; i < count; i++)
        for (unsigned k = 0; k < STEPS; k++)
            printf("%lu%c", (unsigned long)(reached[i][k] - begin) / 1000, " \n"[k == STEPS - 1]);
}

int main(int argc, char **argv)
{
    unsigned count = argc > 5 ? (unsigned)atoi(argv[5]) : 0;
    void *shared;

    if (argc < 6 || argc > 7 || count == 0)
        return 2;
    binary = argv[1];
    state = argv[2];
    memory = argv[3];
    directory = argv[4];
    jailer = argv[6];
    shared = mmap(NULL, count * sizeof(uint64_t[STEPS]), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(shared != MAP_FAILED, "memory");
    run(count, shared);
    return 0;
}
