"""What saving may touch: files in the folder that was named, and none elsewhere through a link. Knows names only."""

import json
import os
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
