/*
 * The policy: each row allows a system call to the threads named, and says what for.
 *
 * ALLOW(who, call, why) allows it with any arguments; ALLOW_1(who, call, test, why) if an argument
 * passes a test, ALLOW_2 if two do. A call may have several rows. who: MAIN (the main thread once
 * the guest runs), VCPU (a vCPU's thread), BOTH, or START (the whole process until then). The
 * filter of the whole process allows every row.
 *
 * tests/seccomp compares this list with what the tests make the VMM call.
 */

/* The guest's processors. */
ALLOW_1(VCPU, ioctl, IS(1, KVM_RUN), "running the guest")
