"""What saving may touch: files in the folder that was named, and none elsewhere through a link. Knows names only."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

MANIFEST = "small4_manifest.json"  # hashes of a folder's weights, written by `small4 convert` and `small4 manifest`
MANIFEST_FORMAT = "small4-manifest"
_SAVED = (".json", ".safetensors", ".jinja", ".txt", ".py", ".model")


class NoLinksFollowed:
    """Put before a class of transformers: its `save_pretrained` writes into the folder it is given, and through no link
    in it.
    """

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As transformers'. Raises ValueError for a file that is a link, see `refuse_links`."""
        refuse_links(save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]


def refuse_links(save_directory: str | os.PathLike[str]) -> None:
    """Look through a folder that `save_pretrained` is about to write into. A snapshot in the Hub's cache consists of
    links to its store.

    Raises:
        ValueError: A file with the ending of those that are saved is a link there.
    """
    if not os.path.isdir(save_directory):
        return
    with os.scandir(save_directory) as entries:
        for entry in entries:
            if entry.name.endswith(_SAVED) and entry.is_symlink():
                raise ValueError(
                    f"{entry.path} is a link to {os.readlink(entry.path)}, and saving would overwrite what it leads "
                    "to. Save into another "
                    "folder, or remove the link."
                )


@contextmanager
def replacing(file: str | os.PathLike[str]) -> Iterator[str]:
    """The path of a temporary file in the same folder, which takes the place of `file` when the block ends and is
    removed if it fails: `file` is whole, or as it was. A link in its place is replaced, not followed.

    Raises:
        OSError: The folder is missing or cannot be written to.
    """
    folder, name = os.path.split(os.path.abspath(file))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} is no folder; make it first.")
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    os.close(handle)
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def remove_manifest(save_directory: str | os.PathLike[str]) -> None:
    """Remove the manifest of the weights that were in this folder before others were saved there. A file of that name
    that is something else stays.
    """
    file = os.path.join(save_directory, MANIFEST)
    if os.path.islink(file) or not os.path.isfile(file):
        return
    try:
        with open(file, encoding="utf-8") as stream:
            ours = json.load(stream)["format"] == MANIFEST_FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if ours:
        os.unlink(file)


@contextmanager
def without_index(save_directory: str | os.PathLike[str], variant: str | None = None) -> Iterator[None]:
    """Shards are written over those of an earlier save without an index beside them: what a killed run leaves, shards
    of two models, is then refused by whoever loads the folder. After an error before any shard was written, the index
    stands in its place again.
    """
    name = "model.safetensors.index.json" if variant is None else f"model.safetensors.index.{variant}.json"
    index, aside = (os.path.join(save_directory, each) for each in (name, f".{name}.before"))
    before = _shards(save_directory)
    with suppress(FileNotFoundError, NotADirectoryError):
        os.replace(index, aside)
    try:
        yield
    except BaseException:
        if _shards(save_directory) == before:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.replace(aside, index)
        raise
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(aside)


def _shards(folder: str | os.PathLike[str]) -> dict[str, tuple[int, int, int]]:
    """The safetensors files of a folder, with what shows that one was written since."""
    if not os.path.isdir(folder):
        return {}
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(".safetensors")]
    return {name: (each.st_ino, each.st_size, each.st_mtime_ns) for name, each in found}
