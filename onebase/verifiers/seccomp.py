"""A filter of system calls, compiled by libseccomp: what an ordinary Python program needs is allowed, all else is not.

libseccomp is a library of the system (`libseccomp.so.2`, LGPL-2.1), found at run time and called through ctypes. Its
Python bindings on PyPI have had no release since 2021.
"""

from __future__ import annotations

import ctypes
import tempfile
from functools import cache

_ALLOWED = """
read write readv writev pread64 pwrite64 lseek close close_range dup dup2 dup3 pipe pipe2 flock
open openat creat stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat
getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 chmod fchmod
fchmodat truncate ftruncate fsync fdatasync umask utimensat utime utimes futimesat sendfile copy_file_range
symlink symlinkat link linkat
mmap munmap mremap mprotect madvise brk msync mincore
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack pause alarm setitimer
getitimer restart_syscall
futex set_robust_list get_robust_list set_tid_address rseq membarrier sched_yield sched_getaffinity arch_prctl
select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd eventfd2
timerfd_create timerfd_settime timerfd_gettime
nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage sysinfo uname getrandom
getpid getppid gettid getpgid getpgrp getsid getuid geteuid getgid getegid getresuid getresgid getgroups getrlimit
capget wait4 waitid exit exit_group
""".split()
"""No socket, no new process, no signal to any process, no tracing, no mounts, no namespaces, no keys, no shared memory,
no change of identity, limits, priority or clock."""
_ALLOW, _ERRNO, _ENOSYS = 0x7FFF0000, 0x00050000, 38
_EQUAL, _MASKED_EQUAL = 4, 7
_CLONE_THREAD = 0x10000
_ALLOWED_WITH = [
    ("clone", (0, _MASKED_EQUAL, _CLONE_THREAD, _CLONE_THREAD)),
    # Duplicating, flags and locks. Not the owner of a descriptor, who may be sent a signal.
    *(("fcntl", (1, _EQUAL, command, 0)) for command in (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1031, 1032)),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    *(("ioctl", (1, _EQUAL, command, 0)) for command in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
]
"""Calls allowed for some values of one argument: (number of the argument, comparison, value, value)."""


class _Condition(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


@cache
def compiled_filter() -> bytes:
    """Returns the filter as the kernel's instructions; b"" where libseccomp is missing.

    A call that is not allowed fails with ENOSYS, as on a kernel without it, so that the C library falls back from
    newer calls to allowed ones.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return b""
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ERRNO | _ENOSYS)))
    rules: list[tuple[str, tuple[int, int, int, int] | None]] = [(name, None) for name in _ALLOWED]
    try:
        for name, values in rules + list(_ALLOWED_WITH):
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:
                continue  # a call that this processor's kernel does not have
            condition = ctypes.byref(_Condition(*values)) if values else None
            library.seccomp_rule_add_array(context, ctypes.c_uint32(_ALLOW), number, int(bool(values)), condition)
        with tempfile.TemporaryFile() as file:
            if library.seccomp_export_bpf(context, file.fileno()) != 0:
                return b""
            file.seek(0)
            return file.read()
    finally:
        library.seccomp_release(context)
