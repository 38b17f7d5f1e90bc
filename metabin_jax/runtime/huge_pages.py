"""Huge pages: a step on a CPU touches much fresh memory, which costs one page fault per page. Imports nothing heavy."""

import os
import sys

SETTING, HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
OLDEST = (2, 35)  # glibc that knows the setting


def start_again() -> None:
    """Starts the command of this process again, with a malloc that takes huge pages; returns if that cannot be or is.

    glibc reads the setting when a process starts, so the process replaces itself and keeps its number. A setting of the
    user's own stays, also an empty one. Linux with glibc only.
    """
    if SETTING not in os.environ and _glibc() >= OLDEST and sys.executable:
        os.environ[SETTING] = HUGE
        os.execv(sys.executable, sys.orig_argv)


def _glibc() -> tuple[int, ...]:
    """The version of glibc; () for another C library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):  # there is no such name
        return ()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()
