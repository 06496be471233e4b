"""Writes a folder that appears whole or not at all: it is written in a private folder beside its place, then moved
there in one step.

Before the private folder (`.small4-*`, mode 0700) is made, a note with its name is written beside it, locked as long as
the run is alive, and the folder itself holds a mark. So two runs on one destination do not mix, and a later run
recognizes what a killed one left behind, at whatever point it was killed. Links are not followed, and nothing that
conversion did not write is deleted: with `--overwrite`, files that do not belong to the old checkpoint stay in the
folder. Does not know what is written into a folder.
"""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import systems
from .checkpoint import CheckpointError
from .ownership import carried_code, foreign_entries, is_known, read_as_weights, why_no_checkpoint

MERGING = "merging"  # a purpose of `private_folder`
PREFIX, NOTE, MARK = ".small4-", ".note", "small4-is-writing"
# The folder being written; and the old one at the destination, which changes places with it.
_NEW, _FORMER = "new", "former"
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


def check_destination(destination: Path, source: Path, overwrite: bool) -> None:
    """Refuse a destination where something would be destroyed. Creates nothing.

    Raises:
        CheckpointError: It exists and `overwrite` is off, is not a checkpoint folder of this model, cannot be replaced,
            or is or contains the source.
    """
    place = _place(destination)
    _refuse_source(place, destination, source)
    if not os.path.lexists(place):
        return
    if place.is_symlink() or not place.is_dir():
        raise CheckpointError(f"{destination}: exists and is no folder; choose another name")
    if place.stat().st_dev != place.parent.stat().st_dev:
        raise CheckpointError(f"{destination}: is a mount point, which cannot be replaced; choose a folder inside it")
    if _is_filled(place):
        if not overwrite:
            for purpose in ("", MERGING):
                _clear_leftovers(place, purpose)  # of a run that was killed after it had put its folder there
        _check_former(place, destination, overwrite)


@contextmanager
def new_folder(destination: Path, overwrite: bool, note: Callable[[str], None] = lambda _: None) -> Iterator[Path]:
    """A new folder to fill. It is moved to `destination` at the end, and removed after an exception.

    note: called with a sentence about the files that stay in the folder that is replaced.

    Raises:
        CheckpointError: Another run is writing the same destination, or it was created or changed meanwhile.
    """
    place = _place(destination)
    with private_folder(place) as private:
        if _is_filled(place):
            _check_former(place, destination, overwrite)
        new = private / _NEW
        new.mkdir()
        yield new
        _sync(new)
        if kept := _put_in_place(new, place, destination, overwrite):
            note(f"{destination}: kept beside the checkpoint, as small4 did not write it: {_listed(kept)}")


@contextmanager
def private_folder(place: Path, purpose: str = "") -> Iterator[Path]:
    """A folder of mode 0700 beside `place` that only this run writes to. Afterwards it is removed, with the checkpoint
    files in it.

    purpose: distinguishes runs that may work on one place at the same time. What a killed run with this purpose left at
    `place` is removed first.

    Raises:
        CheckpointError: Such a run is alive.
    """
    place = _place(place)
    made = _make_parents(place.parent)
    try:
        _clear_leftovers(place, purpose)
        content = _mark_of(place, purpose)
        private = place.parent / f"{PREFIX}{secrets.token_hex(8)}"
        note = private.with_name(private.name + NOTE)
        lock = systems.create_locked(note, content)
        try:
            private.mkdir(mode=0o700)
            (private / ".mark").write_bytes(content)
            (private / ".mark").rename(private / MARK)
            yield private
        finally:
            _remove(private, place)
            _close_note(note, private, lock)
    finally:
        for folder in made:  # those that hold the new folder stay
            with suppress(OSError):
                folder.rmdir()


def write_file(file: Path, text: str, purpose: str) -> None:
    """Write a text file, whole or not at all. One that is there is replaced; a link is replaced, not followed.

    purpose: See `private_folder`.

    Raises:
        OSError: The disk is full or fails.
    """
    with private_folder(file, purpose) as private:
        (private / _NEW).mkdir()
        made = private / _NEW / file.name
        made.write_text(text, encoding="utf-8")
        systems.sync(made)
        os.replace(made, _place(file))
    systems.sync(_place(file).parent)


def _place(destination: Path) -> Path:
    """The path of `destination` with links in its parents resolved. A link in its own place is not followed."""
    if destination.name in ("", ".", ".."):
        return destination.resolve()
    return destination.parent.resolve() / destination.name


def _refuse_source(place: Path, destination: Path, source: Path) -> None:
    origin = source.resolve()
    files = [entry.resolve() for entry in origin.iterdir()] if origin.is_dir() else []
    for path in (origin, *files):  # the files of a source may be links into the destination
        if place == path or place in path.parents:
            raise CheckpointError(f"{destination}: holds the source {source}; choose another folder")


def _is_filled(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink() and bool(os.listdir(place))


def _check_former(place: Path, destination: Path, overwrite: bool) -> None:
    """Check that a folder that is not empty may be replaced."""
    if not overwrite:
        raise CheckpointError(f"{destination}: exists already; choose another folder or add --overwrite")
    if reason := why_no_checkpoint(place):
        raise CheckpointError(f"{destination}: is no checkpoint folder, so --overwrite does not touch it ({reason})")
    staying = foreign_entries(place)
    if weights := read_as_weights(staying):
        raise CheckpointError(
            f"{destination / weights[0]}: would be read as part of the new checkpoint, but small4 writes no such "
            "file; move it away"
        )
    if mounted := next((name for name in staying if os.lstat(place / name).st_dev != place.stat().st_dev), None):
        raise CheckpointError(f"{destination / mounted}: is a mount point, which --overwrite cannot keep in its place")


def _make_parents(parent: Path) -> list[Path]:
    """Create missing parent folders. Returns those made, innermost first, to be removed after a failure."""
    made: list[Path] = []
    for folder in reversed((parent, *parent.parents)):
        if not folder.is_dir():
            with suppress(FileExistsError):
                folder.mkdir()
                made.insert(0, folder)
    return made


def _mark_of(place: Path, purpose: str = "") -> bytes:
    words = f"A run of small4 writes here, or was killed while it did. Destination{purpose and f' of {purpose}'}: "
    return words.encode() + os.fsencode(place.name) + b"\n"


def _clear_leftovers(place: Path, purpose: str) -> None:
    """Remove what killed runs left at this place. Raises CheckpointError if such a run is alive."""
    content = _mark_of(place, purpose)
    for note in sorted(place.parent.glob(f"{PREFIX}*{NOTE}")):
        lock = _open_note(note, content)
        if lock is None:
            continue
        private = note.with_name(note.name.removesuffix(NOTE))
        try:
            if not systems.lock(lock):
                raise CheckpointError(f"{place}: another run is writing it; wait for it or choose another folder")
        except BaseException:
            os.close(lock)
            raise
        if _is_ours(private, content):
            _restore(private, place)
            _remove(private, place)
        _close_note(note, private, lock)


def _open_note(note: Path, content: bytes) -> int | None:
    """A run's note, opened, if it has this content; None for a file that no such run wrote, whatever its name."""
    try:
        descriptor = os.open(note, os.O_RDWR | systems.NO_FOLLOW)
    except OSError:
        return None
    if systems.is_own_file(os.fstat(descriptor)) and os.read(descriptor, 4096) == content:
        return descriptor
    os.close(descriptor)
    return None


def _is_ours(private: Path, content: bytes) -> bool:
    """Whether the folder that a note names belongs to the run: it holds the same mark, or only the file that becomes
    the mark.
    """
    try:
        if not systems.private_to_us(os.lstat(private)):
            return False
        if set(os.listdir(private)) <= {".mark"}:
            return True
        mark = os.open(private / MARK, os.O_RDONLY | systems.NO_FOLLOW)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(mark).st_mode) and os.read(mark, 4096) == content
    finally:
        os.close(mark)


def _close_note(note: Path, private: Path, lock: int) -> None:
    """Remove the note, unless the folder still exists; then a later run tries again."""
    gone = not os.path.lexists(private)
    if gone:
        with suppress(OSError):  # Windows does not remove open files
            note.unlink()
    os.close(lock)
    if gone:
        with suppress(OSError):
            note.unlink(missing_ok=True)


def _restore(private: Path, place: Path) -> None:
    """After a run that was killed while it replaced a folder: move the old folder back to its place."""
    former = private / _FORMER
    if former.is_dir() and not former.is_symlink() and not os.path.lexists(place):
        former.rename(place)


def _put_in_place(new: Path, place: Path, destination: Path, overwrite: bool) -> list[str]:
    """Move `new` to `place`; returns the entries of the old folder that are kept there."""
    if place.is_dir() and not place.is_symlink():
        new.chmod(stat.S_IMODE(place.stat().st_mode))
    try:
        new.rename(place)  # succeeds if there is nothing, or an empty folder
    except OSError as error:
        if error.errno not in _IN_THE_WAY:
            raise
        if not overwrite or place.is_symlink() or not place.is_dir():
            raise CheckpointError(f"{destination}: came into being meanwhile; nothing was replaced") from None
        return _replace(new, place, destination)
    systems.sync(place.parent)
    return []


def _replace(new: Path, place: Path, destination: Path) -> list[str]:
    """Exchange `new` with the folder at `place`, and move into it what is not a file of the old checkpoint."""
    _check_former(place, destination, overwrite=True)
    for name in foreign_entries(place):
        if os.path.lexists(new / name):
            raise CheckpointError(
                f"{destination / name}: a file of the new checkpoint has this name, but small4 did not write it; move "
                "it away"
            )
    _keep_by_link(place, new)
    former = new.rename(new.with_name(_FORMER))
    _change_places(former, place)
    if why_no_checkpoint(former):  # another folder was moved here since it was checked
        _change_places(former, place)
        raise CheckpointError(f"{destination}: came into being meanwhile; nothing was replaced")
    systems.sync(place.parent)
    return _keep_by_move(former, place)


def _keep_by_link(place: Path, new: Path) -> None:
    """Add a hard link in the new folder for every file that stays, so that it never disappears from its place. Folders
    cannot have one.
    """
    for name in foreign_entries(place):
        if not stat.S_ISDIR(os.lstat(place / name).st_mode):
            with suppress(OSError):  # a file system without hard links: it is moved
                os.link(place / name, new / name, follow_symlinks=False)


def _keep_by_move(former: Path, place: Path) -> list[str]:
    """Move what stays and is not there yet into the new folder. Returns all that stays."""
    staying = foreign_entries(former)
    for name in staying:
        if not os.path.lexists(place / name):
            (former / name).rename(place / name)
        elif os.path.samestat(os.lstat(former / name), os.lstat(place / name)):
            (former / name).unlink()
    return staying


def _change_places(one: Path, other: Path) -> None:
    if not systems.exchange(one, other):
        spare = one.rename(one.with_name(_NEW))
        other.rename(one)
        spare.rename(other)


def _remove(private: Path, place: Path) -> None:
    """Delete a run's folder with what it wrote and the files of the old checkpoint. If something cannot be deleted, the
    folder stays.
    """
    with suppress(OSError):
        if (former := private / _FORMER).is_dir() and not former.is_symlink():
            _keep_by_move(former, place)
            code = carried_code(former)
            _delete_files(former, lambda name: is_known(former, name, code))
        for name in os.listdir(private):
            if (private / name).is_dir() and not (private / name).is_symlink() and name != _FORMER:
                _delete_files(private / name, lambda name: True)
        (private / ".mark").unlink(missing_ok=True)
        if os.listdir(private) in ([], [MARK]):
            (private / MARK).unlink(missing_ok=True)
            private.rmdir()


def _delete_files(folder: Path, ours: Callable[[str], bool]) -> None:
    for name in sorted(
        os.listdir(folder), key=lambda name: name == "config.json"
    ):  # last, because it lists which code files are ours
        if not stat.S_ISDIR(os.lstat(folder / name).st_mode) and ours(name):
            (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()


def _sync(folder: Path) -> None:
    """Flush a folder, and the files in it, to disk."""
    for entry in folder.iterdir():
        systems.sync(entry)
    systems.sync(folder)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
