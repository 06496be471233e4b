"""What differs between operating systems: file locks, reading at an offset, exchanging folders, ownership. Knows no
checkpoints.
"""

import ctypes
import os
import stat
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt = None  # type: ignore[assignment]

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # refuses a link, and does not wait for a pipe
_BEYOND = 1 << 30  # Windows locks bytes, which nobody could read then: lock one far behind the content
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE of renameat2(2), and AT_FDCWD


def lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; False if another process has locked it. Always True on a system without
    locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(descriptor, _BEYOND, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:
        return False
    return True


def create_locked(file: Path, content: bytes) -> int:
    """Create a locked file and return its descriptor. Where the system can do that, it appears with its lock and all of
    its content at once.

    Raises:
        OSError: The file exists, or cannot be made.
    """
    unnamed = getattr(os, "O_TMPFILE", None)
    if unnamed is not None and os.path.isdir("/proc/self/fd"):
        with suppress(OSError):  # a file system without unnamed files
            return _create_unseen(file, content, os.O_RDWR | unnamed)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        lock(descriptor)
        os.write(descriptor, content)
    except BaseException:
        os.close(descriptor)
        file.unlink()
        raise
    return descriptor


def _create_unseen(file: Path, content: bytes, flags: int) -> int:
    descriptor, parent = os.open(file.parent, flags, 0o600), os.open(file.parent, os.O_RDONLY)
    try:
        lock(descriptor)
        os.write(descriptor, content)
        os.link(f"/proc/self/fd/{descriptor}", file.name, dst_dir_fd=parent, follow_symlinks=True)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        os.close(parent)
    return descriptor


def is_own_file(found: os.stat_result) -> bool:
    """Whether a regular file belongs to this user, on systems that know owners."""
    return stat.S_ISREG(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())


def private_to_us(found: os.stat_result) -> bool:
    """Whether a folder belongs to this user and is closed to others, on systems that know owners."""
    if not stat.S_ISDIR(found.st_mode):
        return False
    return not hasattr(os, "geteuid") or (not found.st_mode & 0o077 and found.st_uid == os.geteuid())


def read_at(descriptor: int, buffer: memoryview, place: int) -> int:
    """Fill `buffer` from byte `place` on; returns how many bytes were read."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], place)
    os.lseek(descriptor, place, os.SEEK_SET)
    data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def open_to_read(file: Path) -> int:
    """A descriptor for reading bytes."""
    return os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, so that there is always one in the place; False if the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux
        return False
    return rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def sync(path: Path) -> None:
    """Flush a file or a folder to disk. Where folders cannot be opened, they are left to the system."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, (os.O_RDONLY if os.name != "nt" else os.O_RDWR) | getattr(os, "O_NOFOLLOW", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
