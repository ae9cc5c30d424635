"""A Python without what only Linux has and macOS lacks; Python imports this file at its start if it is on its path."""

import ctypes
import multiprocessing.context
import os
import resource
import select
import signal

LINUX_ALONE = {
    os: (
        "MFD_CLOEXEC O_DIRECT O_NOATIME O_PATH O_TMPFILE copy_file_range eventfd fdatasync getrandom getxattr listxattr"
        " memfd_create pidfd_open pipe2 posix_fadvise posix_fallocate removexattr sched_getaffinity sched_getparam"
        " sched_getscheduler sched_setaffinity sched_setparam sched_setscheduler setxattr splice"
    ),
    resource: "RUSAGE_THREAD prlimit",
    select: "epoll",
    signal: "pidfd_send_signal sigtimedwait sigwaitinfo",
}
FUNCTIONS_OF_C = ("mallopt", "prctl")

for module, names in LINUX_ALONE.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

found_in_library = ctypes.CDLL.__getattr__


def without_functions(library: ctypes.CDLL, name: str) -> object:
    """Functions of a C library, but for those of Linux."""
    if name in FUNCTIONS_OF_C:
        raise AttributeError(name)
    return found_in_library(library, name)


ctypes.CDLL.__getattr__ = without_functions
contexts = multiprocessing.context
contexts._default_context.__init__(contexts._concrete_contexts["spawn"])
