/*
 * The policy: each row leaves a system call to the threads named, and says what for.
 *
 *   ALLOW(who, call, why)                 with any arguments
 *   ALLOW_IF(who, call, test, why)        if an argument passes a test: IS(place, value),
 *                                         HAS_NONE_OF(place, bits), HAS_ONLY(place, bits); or
 *                                         several do: ALL(test, test...)
 *   REFUSE(who, call, errno, why)         fails with an error instead of ending the process
 *
 * The first argument of a call has place 0. OWN_PID is the process's when the filter is installed.
 * What an argument points to can't be looked at. who is one of
 *
 *   START   the process until the guest runs     VCPU   a vCPU's thread
 *   MAIN    the main thread from then on         EVER   START and MAIN        BOTH   MAIN and VCPU
 *   PAGER   the thread that serves guest memory, where a working set is recorded
 *   EACH    MAIN, VCPU and PAGER
 *
 * and UNSEEN is added where no test can bring the call about on every host. The filter of the whole
 * process allows each row. Frequent calls come first: a filter that is a list compares in this
 * order, and each compares an argument's values in it.
 *
 * ./devtool seccomp compares this list with what the tests make the VMM call.
 */

/* The guest's processors. */
ALLOW_IF(VCPU, ioctl, IS(1, KVM_RUN), "to run the guest")
ALLOW_IF(BOTH, ioctl, IS(1, KVM_IRQ_LINE), "to interrupt it: a line of KVM's interrupt controllers")
ALLOW_IF(VCPU, pwritev2, HAS_ONLY(5, RWF_NOWAIT),
         "disks that needn't be waited for, from guest memory")
ALLOW_IF(VCPU, preadv2, HAS_ONLY(5, RWF_NOWAIT), "the same, to guest memory")
ALLOW_IF(VCPU, ioctl, IS(1, KVM_KVMCLOCK_CTRL), "to tell a guest that it stood still")
ALLOW_IF(MAIN, tgkill, ALL(IS(0, OWN_PID), IS(2, SIGURG)),
         "to get a vCPU out of the guest, to be held")
ALLOW_IF(VCPU | UNSEEN, ioctl, IS(1, KVM_GET_REGS), "to log where a guest is that can't go on")
ALLOW(BOTH, rt_sigreturn, "after a signal to a vCPU, or a SIGPIPE")
ALLOW(PAGER | UNSEEN, rt_sigreturn, "after a SIGPIPE")

/* Locks and conditions between threads; no other kind of futex. */
ALLOW_IF(BOTH, futex, IS(1, FUTEX_WAIT_PRIVATE), "to wait for a lock")
ALLOW_IF(BOTH, futex, IS(1, FUTEX_WAKE_PRIVATE), "to hand over a lock")
ALLOW_IF(VCPU, futex, IS(1, FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME),
         "to wait for a condition")
ALLOW_IF(EVER, futex, IS(1, FUTEX_WAIT_BITSET_PRIVATE), "the same, but not for ever")
ALLOW(EVER | UNSEEN, restart_syscall,
      "a wait with a deadline goes on after work for io_uring in the kernel")

/* Devices. */
ALLOW(EACH, write, "eventfds, the guest's console, log, metrics")
ALLOW(MAIN, preadv, "disks, to guest memory")
ALLOW(EVER, pwritev, "disks, from guest memory; which sectors an overlay has; snapshots")
ALLOW(MAIN, readv, "frames from the tap, streams from vsock's sockets")
ALLOW(EVER, writev, "answers of the API; frames to the tap, streams to vsock's sockets")
ALLOW(MAIN, fdatasync, "a guest's flush; what is frozen")
ALLOW(MAIN, fallocate, "a guest's discard or write-zeroes; a fold's holes")
ALLOW_IF(EVER | UNSEEN, ioctl, IS(1, BLKROGET), "whether a block device may be written")
ALLOW(MAIN, io_uring_enter, "the Async engine; each ring is restricted to its disk")
ALLOW(VCPU | UNSEEN, io_uring_enter, "a device is reset while the Async engine is at work")
ALLOW_IF(EVER, io_uring_register, IS(1, IORING_REGISTER_FILES_UPDATE), "PATCH /drives")
ALLOW_IF(START, io_uring_register, IS(1, IORING_REGISTER_FILES), "the Async engine's disk")
ALLOW_IF(START, io_uring_register, IS(1, IORING_REGISTER_RESTRICTIONS), "the Async engine's limits")
ALLOW_IF(START, io_uring_register, IS(1, IORING_REGISTER_ENABLE_RINGS), "the Async engine's limits")
ALLOW(START, io_uring_setup, "the Async engine")

ALLOW_IF(VCPU, ioctl, IS(1, TUNSETOFFLOAD), "the driver says which frames it takes")
ALLOW_IF(START, ioctl, IS(1, TUNSETIFF), "a network interface's tap")
ALLOW_IF(START, ioctl, IS(1, SIOCGIFINDEX), "a macvtap: its device")
ALLOW_IF(START, ioctl, IS(1, SIOCGIFHWADDR), "a macvtap: whether the device is that interface's")
ALLOW_IF(START, ioctl, IS(1, TUNSETVNETHDRSZ), "a network interface's tap")
ALLOW_IF(START, ioctl, IS(1, TUNSETOFFLOAD), "what the kernel can segment")

/* The event loop. */
ALLOW(EVER, epoll_wait, "the event loop")
ALLOW(EVER, epoll_ctl, "the event loop")
ALLOW(START, epoll_create1, "the event loop")
ALLOW(START, eventfd2, "queues, interrupts, the guest's end")
ALLOW(EVER, timerfd_create, "rate limiters, periodic metrics, copying ahead, live snapshots, folds")
ALLOW(EVER, timerfd_settime,
      "rate limiters, periodic metrics, copying ahead, live snapshots, folds")
ALLOW(VCPU, timerfd_settime, "vsock is reset: the event loop takes it from there")
ALLOW(EVER, read, "eventfds, timers, the console's input; configuration files")

/* The API and vsock: streams on UNIX sockets. No call that carries control data, by which
 * descriptors travel, once a guest runs; and the whole of an address, so that of abstract sockets
 * only those are meant whose names are that long. */
ALLOW_IF(EVER, accept4, IS(3, SOCK_NONBLOCK | SOCK_CLOEXEC), "the API; vsock, from the host")
ALLOW_IF(MAIN, recvfrom, IS(3, MSG_PEEK), "what a host asks vsock for")
ALLOW_IF(MAIN, setsockopt, ALL(IS(1, SOL_SOCKET), IS(2, SO_SNDBUF)),
         "what a host's vsock connection may hold")
ALLOW(EVER, close, "connections of the API, replaced disks")
ALLOW_IF(EVER, socket,
         ALL(IS(0, AF_UNIX), IS(1, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC), IS(2, 0)),
         "the API's socket; vsock, to the host")
ALLOW_IF(EVER, connect, IS(2, sizeof(struct sockaddr_un)),
         "vsock, to the host; to who serves guest memory")
ALLOW(MAIN, poll, "vsock: whether a host is still there")
ALLOW(EVER, shutdown, "the API's last answer; vsock: a side that sends no more")
ALLOW(START, bind, "the sockets of the API and of vsock")
ALLOW(START, listen, "the sockets of the API and of vsock")

/* Guest memory that another process serves. */
ALLOW_IF(START, ioctl, IS(1, USERFAULTFD_IOC_NEW), "guest memory that another process serves")
ALLOW_IF(START | UNSEEN, userfaultfd, IS(0, O_CLOEXEC | O_NONBLOCK),
         "the same, on hosts without its device")
ALLOW_IF(START, ioctl, IS(1, UFFDIO_API), "what the host can do")
ALLOW_IF(START, ioctl, IS(1, UFFDIO_REGISTER), "which memory")
ALLOW_IF(START, ioctl, IS(1, UFFDIO_UNREGISTER), "a load fails")
ALLOW_IF(START, setsockopt, ALL(IS(1, SOL_SOCKET), IS(2, SO_SNDTIMEO)), "a handler that is slow")
ALLOW_IF(START, getsockopt, IS(2, SO_PEERCRED), "who the handler is")
ALLOW_IF(START, sendmsg, IS(2, MSG_NOSIGNAL), "to hand it over")

/* Guest memory that the process itself serves, to record which pages are touched; and the pages
 * that were, at a later load. */
ALLOW(PAGER, read, "who waits for which page")
ALLOW_IF(PAGER, ioctl, IS(1, UFFDIO_COPY), "to give it")
ALLOW_IF(EVER, preadv2, IS(5, RWF_NOWAIT),
         "whether a memory file is in the page cache; whether a disk can be read without waiting")
ALLOW_IF(START, fadvise64, IS(3, POSIX_FADV_WILLNEED), "a record of a working set")
ALLOW_IF(START, madvise, IS(2, MADV_POPULATE_READ), "a working set's pages")

/* Files. Where the VMM is jailed, there are few. */
ALLOW_IF(START, openat,
         HAS_ONLY(2, O_WRONLY | O_RDWR | O_CREAT | O_APPEND | O_NOCTTY | O_NONBLOCK | O_CLOEXEC),
         "what a configuration names")
ALLOW_IF(MAIN, openat, HAS_ONLY(2, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), "PATCH /drives")
ALLOW(EVER, unlink, "vsock's socket, when it is configured anew; what a snapshot leaves")
ALLOW(EVER, newfstatat, "what kind of file it is, how large")
ALLOW(EVER, lseek, "the size of a disk; holes of a layer that is folded")
ALLOW_IF(EVER, fcntl, ALL(IS(1, F_SETFL), IS(2, 0)), "disks block")
ALLOW_IF(START, fcntl, ALL(IS(0, STDOUT_FILENO), IS(1, F_GETFL)),
         "the console's flags, when it is a socket")
ALLOW(EVER, pread64, "kernel and initrd; which sectors an overlay has")
ALLOW(EVER, fstatfs, "whether the files of kernel and initrd can change; room for a fold")
ALLOW(START, statx, "whether the files of kernel and initrd can change")
ALLOW_IF(START, fcntl, IS(1, F_GET_SEALS), "whether the files of kernel and initrd can change")
ALLOW_IF(START, fcntl, IS(1, F_SETLEASE), "a lease on kernel and initrd")
ALLOW_IF(MAIN, fcntl, ALL(IS(1, F_SETLEASE), IS(2, F_UNLCK)), "to give it back")
ALLOW(MAIN, signalfd4, "to hear that somebody waits for it")

/* The files of a snapshot, and which pages there are. */
ALLOW_IF(EVER, openat,
         ALL(IS(2, O_RDWR | O_CREAT | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), IS(3, 0666)),
         "what is renamed to a snapshot's files; overlays")
ALLOW_IF(MAIN, openat,
         ALL(IS(2, O_RDWR | O_CREAT | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), IS(3, 0666)),
         "the same, of a name that leaves no room for another")
ALLOW_IF(MAIN, openat, IS(2, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
         "that a snapshot's names last, and an overlay's")
ALLOW_IF(MAIN, statx, IS(2, AT_SYMLINK_NOFOLLOW), "whether a snapshot's file can be replaced")
ALLOW(MAIN, geteuid, "the same, in a sticky directory")
ALLOW(EVER, readlink, "where a link leads that a snapshot is to be behind; the C library's start")
ALLOW_IF(EVER, flock, IS(1, LOCK_EX | LOCK_NB),
         "a snapshot's files, while they are written; an overlay")
ALLOW_IF(EVER, flock, IS(1, LOCK_SH | LOCK_NB), "a file that memory is mapped from; layers")
ALLOW_IF(START, flock, IS(1, LOCK_UN), "a drive is configured anew with its overlay")
ALLOW(EVER, fgetxattr, "which snapshot a memory file is of")
ALLOW_IF(MAIN, fsetxattr, IS(4, 0), "the same, when it is written")
ALLOW_IF(MAIN, fchmod, HAS_ONLY(1, 0777), "a new file has the permissions of the old one")
ALLOW(EVER, ftruncate,
      "how long a memory file is, and a new overlay; an old record of a working set")
ALLOW_IF(MAIN, copy_file_range, IS(5, 0), "pages that a restored guest did not write")
ALLOW(MAIN, fsync, "a snapshot's files, and their names; an overlay's name")
ALLOW_IF(MAIN, sync_file_range, IS(3, SYNC_FILE_RANGE_WRITE),
         "a live snapshot: memory's pages; what was folded")
ALLOW_IF(MAIN, sync_file_range,
         IS(3, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER),
         "a live snapshot: those before")
ALLOW(MAIN, rename, "a snapshot's files, when they are whole")
ALLOW(MAIN, mincore, "which pages of guest memory there are")
ALLOW(MAIN, sysinfo, "whether some may be swapped out")
ALLOW_IF(START, ioctl, IS(1, KVM_ENABLE_CAP), "how KVM's log of written pages is read")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_DIRTY_LOG), "which pages the guest wrote")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_CLEAR_DIRTY_LOG), "which are in a snapshot")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_SET_USER_MEMORY_REGION),
         "a live snapshot: the log is kept for a while")

/* Memory: never executable. */
ALLOW(EVER, brk, "the heap")
ALLOW_IF(START, mmap,
         ALL(HAS_ONLY(2, PROT_READ | PROT_WRITE),
             HAS_ONLY(3, MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE |
                             MAP_POPULATE | MAP_STACK | MAP_HUGETLB | MAP_HUGE_2MB)),
         "the heap; guest memory, vCPUs, stacks, rings")
ALLOW_IF(MAIN, mmap, ALL(IS(2, PROT_READ | PROT_WRITE), IS(3, MAP_PRIVATE | MAP_ANONYMOUS)),
         "the heap")
ALLOW_IF(MAIN, mmap,
         ALL(IS(2, PROT_READ | PROT_WRITE),
             IS(3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE)),
         "memory parts from a file")
ALLOW(EVER, munmap, "the heap; what a failed start leaves")
ALLOW(EVER, mremap, "the heap: large requests to the API; memory parts from a file")
ALLOW_IF(START, madvise, IS(2, MADV_HUGEPAGE), "huge pages")
ALLOW_IF(EVER, madvise, IS(2, MADV_DONTDUMP), "guest memory is in no core dump")
ALLOW_IF(EVER, madvise, IS(2, MADV_POPULATE_WRITE), "copies ahead of the guest")
ALLOW_IF(START, mprotect, HAS_ONLY(2, PROT_READ | PROT_WRITE), "stacks, relocations")

/* Log lines, and ways to end. */
ALLOW(EACH, gettid, "the thread's name in the log")
ALLOW(EACH, getpid, "the thread's name in the log")
ALLOW_IF(VCPU | PAGER, prctl, IS(0, PR_GET_NAME), "the thread's name in the log")
ALLOW(EVER, rt_sigprocmask, "around signals sent to oneself")
ALLOW(EVER, clock_gettime, "the CPU time of the process, for its metrics; time, as below")
ALLOW(VCPU | PAGER | UNSEEN, clock_gettime, "time, on hosts where reading it needs the kernel")
ALLOW(EACH, exit_group, "the end")
ALLOW_IF(BOTH, ioctl, IS(1, TCGETS), "the terminal's mode")
ALLOW_IF(PAGER | UNSEEN, ioctl, IS(1, TCGETS), "the terminal's mode")
ALLOW_IF(BOTH, ioctl, IS(1, TCSETS), "the terminal's old mode, at the end")
ALLOW_IF(PAGER | UNSEEN, ioctl, IS(1, TCSETS), "the terminal's old mode, at the end")
ALLOW_IF(BOTH, fcntl, ALL(IS(0, STDOUT_FILENO), IS(1, F_SETFL)), "its output's flags, likewise")
ALLOW_IF(PAGER | UNSEEN, fcntl, ALL(IS(0, STDOUT_FILENO), IS(1, F_SETFL)),
         "its output's flags, likewise")
ALLOW_IF(BOTH, ioctl, IS(1, TIOCGPGRP), "whether the terminal is somebody else's by then")
ALLOW_IF(PAGER | UNSEEN, ioctl, IS(1, TIOCGPGRP), "whether the terminal is somebody else's by then")
ALLOW(EACH | UNSEEN, getpgrp, "whether the terminal is somebody else's by then")
ALLOW_IF(EACH | UNSEEN, tgkill, ALL(IS(0, OWN_PID), IS(2, SIGTERM)), "raised anew by its handler")
ALLOW_IF(EACH | UNSEEN, tgkill, ALL(IS(0, OWN_PID), IS(2, SIGINT)), "raised anew by its handler")
ALLOW_IF(EACH | UNSEEN, tgkill, ALL(IS(0, OWN_PID), IS(2, SIGQUIT)), "raised anew by its handler")
ALLOW_IF(EACH | UNSEEN, tgkill, ALL(IS(0, OWN_PID), IS(2, SIGABRT)), "a broken invariant")
ALLOW(VCPU | PAGER | UNSEEN, rt_sigprocmask, "a broken invariant")
ALLOW(EACH | UNSEEN, sched_yield, "a fatal signal while another thread writes the metrics")

/* A start: what KVM is asked for. */
ALLOW_IF(START, ioctl, IS(1, KVM_GET_API_VERSION), "to check the host")
ALLOW_IF(START, ioctl, IS(1, KVM_CHECK_EXTENSION), "to check the host")
ALLOW_IF(START, ioctl, IS(1, KVM_GET_VCPU_MMAP_SIZE), "vCPUs")
ALLOW_IF(START, ioctl, IS(1, KVM_GET_SUPPORTED_CPUID), "vCPUs")
ALLOW_IF(START, ioctl, IS(1, KVM_CREATE_VM), "the VM")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_USER_MEMORY_REGION), "guest memory")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_TSS_ADDR), "the VM")
ALLOW_IF(START, ioctl, IS(1, KVM_CREATE_IRQCHIP), "interrupt controllers")
ALLOW_IF(START, ioctl, IS(1, KVM_CREATE_PIT2), "the interval timer")
ALLOW_IF(START, ioctl, IS(1, KVM_IOEVENTFD), "notifications of the virtio devices")
ALLOW_IF(START, ioctl, IS(1, KVM_CREATE_VCPU), "vCPUs")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_CPUID2), "vCPUs")
ALLOW_IF(START, ioctl, IS(1, KVM_GET_MSRS), "vCPUs")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_MSRS), "vCPUs")
ALLOW_IF(START, ioctl, IS(1, KVM_GET_LAPIC), "vCPUs")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_LAPIC), "vCPUs")
ALLOW_IF(START, ioctl, IS(1, KVM_GET_SREGS), "the first vCPU's entry")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_SREGS), "the first vCPU's entry")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_REGS), "the first vCPU's entry")
ALLOW(EVER, getrandom, "the VM's generation id; the seed of hashes, for objects inside a body")
ALLOW(START, rt_sigaction, "handlers")

/* A snapshot: what KVM and the files are asked for, with the guest standing still; and one that is
 * loaded, as a start is made. */
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_MP_STATE), "a snapshot: a vCPU")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_REGS), "a snapshot: a vCPU")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_SREGS), "a snapshot: a vCPU")
ALLOW_IF(MAIN | UNSEEN, ioctl, IS(1, KVM_GET_XSAVE), "a snapshot: a vCPU")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_XSAVE2), "a snapshot: a vCPU")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_XCRS), "a snapshot: a vCPU")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_DEBUGREGS), "a snapshot: a vCPU")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_LAPIC), "a snapshot: a vCPU")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_CPUID2), "a snapshot: a vCPU")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_MSRS), "a snapshot: a vCPU")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_VCPU_EVENTS), "a snapshot: a vCPU")
ALLOW_IF(EVER, ioctl, IS(1, KVM_GET_TSC_KHZ), "a snapshot: a vCPU")
ALLOW_IF(EVER, ioctl, IS(1, KVM_GET_DEVICE_ATTR), "a snapshot: a vCPU's TSC")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_MSR_INDEX_LIST), "a snapshot: what a vCPU has")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_CHECK_EXTENSION), "a snapshot: what a vCPU has")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_PIT2), "a snapshot: what vCPUs share")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_CLOCK), "a snapshot: what vCPUs share")
ALLOW_IF(MAIN, ioctl, IS(1, KVM_GET_IRQCHIP), "a snapshot: what vCPUs share")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_MP_STATE), "a snapshot is loaded: a vCPU")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_XSAVE), "a snapshot is loaded: a vCPU")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_XCRS), "a snapshot is loaded: a vCPU")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_DEBUGREGS), "a snapshot is loaded: a vCPU")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_VCPU_EVENTS), "a snapshot is loaded: a vCPU")
ALLOW_IF(START | UNSEEN, ioctl, IS(1, KVM_SET_TSC_KHZ), "a snapshot is loaded: a vCPU's TSC")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_DEVICE_ATTR), "a snapshot is loaded: a vCPU's TSC")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_PIT2), "a snapshot is loaded: what vCPUs share")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_CLOCK), "a snapshot is loaded: what vCPUs share")
ALLOW_IF(START, ioctl, IS(1, KVM_SET_IRQCHIP), "a snapshot is loaded: what vCPUs share")
ALLOW_IF(START, ioctl, IS(1, KVM_IRQ_LINE), "a snapshot is loaded: the guest is told")

/* Threads, but no processes: a filter can't see the flags of clone3, so the C library is told that
 * there is none. */
REFUSE(START, clone3, ENOSYS, "so that clone is called")
ALLOW_IF(START, clone, IS(0, THREAD_FLAGS), "the vCPUs' threads")
ALLOW(START, set_robust_list, "threads")
ALLOW(START, rseq, "threads")
ALLOW_IF(START, prctl, IS(0, PR_GET_NAME), "the threads' names")
ALLOW_IF(START, prctl, IS(0, PR_SET_NAME), "the threads' names")
ALLOW_IF(EVER, prctl, ALL(IS(0, PR_SET_VMA), IS(1, PR_SET_VMA_ANON_NAME)), "guest memory's name")
ALLOW_IF(START, prctl, IS(0, PR_SET_NO_NEW_PRIVS), "to install filters and walls")
ALLOW(START, landlock_create_ruleset, "the walls that a filter can't be")
ALLOW(START, landlock_restrict_self, "the walls that a filter can't be")
ALLOW(START, seccomp, "the filters of the threads")

/* What the jailer left for a start only. */
ALLOW(START, capget, "whether user 0 has a capability")
ALLOW(START, capset, "user 0 gives it up")
ALLOW_IF(START, getsockopt, IS(2, SO_TYPE), "whether standard error is the host's syslog")
ALLOW_IF(START | UNSEEN, dup2, IS(1, STDERR_FILENO), "standard error is the host's syslog no more")

/* From the jailer's execve to main(). */
ALLOW(START, execve, "the jailer becomes the VMM")
ALLOW(START, arch_prctl, "the C library's start; to ask for the state of AMX")
ALLOW(START, set_tid_address, "the C library's start")
ALLOW_IF(START, prlimit64, ALL(IS(0, 0), IS(1, RLIMIT_STACK), IS(2, 0)), "the C library's start")
