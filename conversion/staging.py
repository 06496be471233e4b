"""A folder that appears whole or not at all: written beside its place under a temporary name, then renamed.

The temporary folder is locked while it is written, so two runs on one destination do not mix, and a lock dies with its process,
so a killed run leaves nothing that stops the next. Knows folders; it does not know what is written into them.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoint import CheckpointError

_CHECKPOINT_FILES = ("config.json", "params.json")


def check_destination(destination: Path, source: Path, overwrite: bool) -> None:
    """Refuse a destination that would destroy something. Creates nothing.

    Raises:
        CheckpointError: It exists and `overwrite` is off, is no checkpoint folder, or holds or is the source.
    """
    place, origin = destination.resolve(), source.resolve()
    if place == origin or place in origin.parents:
        raise CheckpointError(f"{destination}: holds the source {source}; choose another folder")
    if not os.path.lexists(destination):
        return
    if destination.is_symlink() or not destination.is_dir():
        raise CheckpointError(f"{destination}: exists and is no folder; choose another name")
    entries = {entry.name for entry in destination.iterdir()}
    if not entries:
        return
    if not overwrite:
        raise CheckpointError(f"{destination}: exists already; choose another folder or add --overwrite")
    if not entries.intersection(_CHECKPOINT_FILES):
        raise CheckpointError(f"{destination}: is no checkpoint folder, so --overwrite does not touch it")


@contextmanager
def new_folder(destination: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder to fill. Leaving normally puts it at `destination`; leaving by an exception removes it.

    Raises:
        CheckpointError: Another run is writing the same destination, or it came into being meanwhile.
    """
    place = destination.resolve()
    made = _make_parents(place.parent)
    partial = place.with_name(f".{place.name}.partial")
    lock = _locked(partial, destination)
    done = False
    try:
        _restore_interrupted_swap(place)
        yield partial
        _sync(partial)
        _put_in_place(partial, place, destination, overwrite)
        done = True
    finally:
        if not done:
            shutil.rmtree(partial, ignore_errors=True)
            for folder in made:
                _remove_if_empty(folder)
        os.close(lock)


def _make_parents(parent: Path) -> list[Path]:
    """Create missing parent folders; returns those made, innermost first, to be removed if nothing comes of it."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def _locked(partial: Path, destination: Path) -> int:
    """Create or take over the temporary folder, emptied, with its lock held; returns the lock's file descriptor."""
    busy = CheckpointError(f"{destination}: another run is writing it; wait for it or choose another folder")
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The run that held the lock may have renamed or removed this very folder between our open and our lock.
        if not partial.exists() or os.fstat(lock).st_ino != partial.stat().st_ino:
            raise busy
        for entry in partial.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    except BlockingIOError:
        os.close(lock)
        raise busy from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _restore_interrupted_swap(place: Path) -> None:
    """A run killed while it replaced a folder left the former one aside: put it back, or drop it if the swap was done."""
    old = _old(place)
    if not old.exists():
        return
    if place.exists():
        shutil.rmtree(old)
    else:
        old.rename(place)


def _put_in_place(partial: Path, place: Path, destination: Path, overwrite: bool) -> None:
    try:
        partial.rename(place)  # succeeds onto nothing and onto an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not overwrite:
            raise CheckpointError(f"{destination}: came into being meanwhile; nothing was replaced") from None
        place.rename(_old(place))
        partial.rename(place)
        shutil.rmtree(_old(place))
    _sync(place.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
