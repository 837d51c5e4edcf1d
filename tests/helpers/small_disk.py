"""A file system of a few megabytes, for this process alone."""

import contextlib
import ctypes
import os

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000


def mount(path, size):
    """Mount it; to be called before there are threads.

    Returns:
        Whether that is allowed here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {user} 1"),
        ("gid_map", f"0 {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    options = f"size={size}".encode()
    return not libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, options)


@contextlib.contextmanager
def filled(path, free):
    """Leave only so many bytes of it."""
    page = os.sysconf("SC_PAGE_SIZE")
    available = os.statvfs(path).f_bavail * page
    ballast = os.path.join(path, "ballast")
    with open(ballast, "wb") as file:
        file.write(bytes(max(0, available - free)))
    yield
    os.unlink(ballast)
