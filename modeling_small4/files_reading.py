"""Files that may be damaged, read so that every error is one readable line that begins with the file's name.

Knows JSON and the frame of safetensors files (github.com/huggingface/safetensors, "Format"); nothing of what they say
about a model.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

LONGEST = 300  # letters of a message that comes from elsewhere
LONGEST_NAME = 255  # bytes of a file's name, on every file system in use
# Errors that a damaged file brings about in whoever reads it; a message that explains them is ours.
_STUMBLES = (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, AssertionError, UnicodeError)
POINTED = "is a Git LFS pointer, not the file itself; fetch it with git lfs pull, or download it"
_POINTER = b"version https://git-lfs.github.com/spec/"
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def one_line(text: object, limit: int = LONGEST) -> str:
    """The text on one line of at most `limit` letters, all of which can be printed."""
    line = " ".join(str(text)[: 100 * limit].split())
    if not line.isprintable():  # halves of surrogate pairs, controls: as Python writes them in a string
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    return line if len(line) <= limit else f"{line[: limit - 20]} ... ({len(line)} letters)"


def shown(value: object, limit: int = 80) -> str:
    """A value as it stands in a message."""
    try:
        return one_line(repr(value), limit)
    except (ValueError, RecursionError):  # Python writes no number of more than 4300 digits
        return f"a {type(value).__name__} too large to show"


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line; the kind of error where its message alone says little."""
    text = one_line(error)
    return text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"


def parse_json(data: bytes, strict: bool = False) -> dict[str, Any]:
    """The object in a JSON text.

    Args:
        strict: Also refuse a key that stands twice, and NaN and Infinity.

    Raises:
        ValueError: Anything else than one object in UTF-8.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {shown(next(n for n in names if names.count(n) > 1))} appears twice")
        return out

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    hooks: dict[str, Any] = {"object_pairs_hook": unique, "parse_constant": refuse} if strict else {}
    try:
        out = json.loads(data.decode("utf-8"), **hooks)
        if _HALF_PAIR.search(data):
            json.dumps(out, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a surrogate pair, which is no letter") from None
    except RecursionError:
        raise ValueError("lists or objects are nested too deep") from None
    if not isinstance(out, dict):
        raise ValueError(f"a {type(out).__name__} stands where an object is expected")
    return out


def read_json(file: Path, strict: bool = False) -> dict[str, Any]:
    """The object in a JSON file; as `parse_json`, with the file's name in the error.

    Raises:
        OSError: There is no such file, or it cannot be opened.
        ValueError: It is no plain file, or holds anything else.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise ValueError(f"{file}: is no file")
    try:
        return parse_json(file.read_bytes(), strict)
    except ValueError as error:
        about = POINTED if is_pointer(file) else f"not a valid JSON object ({one_line(error, 200)})"
        raise ValueError(f"{file}: {about}") from None


def is_pointer(file: Path) -> bool:
    """Whether Git LFS has put the name of a file's contents in their place."""
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def check_json(folder: Path, *names: str) -> None:
    """Read those of these files that are in the folder. Raises ValueError or OSError for a damaged one."""
    for name in names:
        if os.path.lexists(folder / name):
            read_json(folder / name)


def check_text(file: Path) -> None:
    """Read a text file, if there is one. Raises ValueError or OSError for one that is no text in UTF-8."""
    if os.path.lexists(file):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeError as error:
            raise ValueError(f"{file}: is no text in UTF-8 ({one_line(error)})") from None


def check_weights(folder: Path, stem: str = "model") -> None:
    """Look at the index and at the headers of a folder's safetensors files before they are loaded.

    Raises:
        ValueError: The index is no map of tensors to files of the folder, or a file is damaged; with the tensor where
            there is one.
        OSError: A file that the index names is missing, or one cannot be opened.
    """
    index = folder / f"{stem}.safetensors.index.json"
    files = _indexed(index) if os.path.lexists(index) else [folder / f"{stem}.safetensors"]
    for file in files:
        if os.path.lexists(file):
            _check_header(file)
        elif files != [folder / f"{stem}.safetensors"]:
            raise FileNotFoundError(f"{file}: missing, {index.name} names it")


def _indexed(index: Path) -> list[Path]:
    content = read_json(index)
    places, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(metadata, dict):  # transformers writes into it
        raise ValueError(f"{index}: metadata must be an object, but is {shown(metadata)}")
    if not isinstance(places, dict) or not places:
        raise ValueError(
            f"{index}: weight_map must be an object that names the file of each tensor, but is {shown(places)}"
        )
    for tensor, name in places.items():
        plain = isinstance(name, str) and os.path.basename(name) == name and name.endswith(".safetensors")
        if not plain or "\\" in name or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"{index}: tensor {one_line(tensor, 120)} is in {shown(name)}, which is no safetensors file of the "
                "folder"
            )
    return [index.parent / name for name in sorted(set(places.values()))]


def _check_header(file: Path) -> None:
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise ValueError(f"{file}: is no file")
    try:
        with safe_open(file, "pt", backend="pread"):
            return
    except (SafetensorError, ValueError) as error:  # a ValueError: a name that is no UTF-8
        if is_pointer(file):
            raise ValueError(f"{file}: {POINTED}") from None
        tensor = _damaged_tensor(file)
        where = f"tensor {tensor}: " if tensor else ""
        raise ValueError(f"{file}: {where}{one_line(error)}. The file is damaged; copy or download it again.") from None


def _damaged_tensor(file: Path) -> str | None:
    """The tensor whose entry in the header is not as it has to be, or does not follow the one before it."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = parse_json(stream.read(min(length, 100 << 20)))
        except ValueError:
            return None
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
        if name != "__metadata__":
            begin = _begin(entry)
            if begin != end or not isinstance(entry.get("dtype"), str) or not _whole(entry.get("shape")):
                return one_line(name, 120)
            end = entry["data_offsets"][1]
    return None


def _begin(entry: object) -> int:
    """Where a tensor begins; -1 for an entry that does not say."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return offsets[0] if isinstance(offsets, list) and len(offsets) == 2 and _whole(offsets) else -1


def _whole(numbers: object) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def folder_of(source: object, subfolder: object = None) -> Path | None:
    """The local folder that `from_pretrained` is to read; None for what is on the Hub."""
    if not isinstance(source, (str, os.PathLike)) or not os.path.isdir(source):
        return None
    return Path(source) / (subfolder if isinstance(subfolder, str) else "")


@contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """Let what goes wrong with a file begin with its name: a ValueError, whichever error a library raises over damaged
    contents.

    Errors of the file system, and those that name the file already, stay as they are.
    """
    try:
        yield
    except OSError:
        raise
    except ValueError as error:
        text = str(error)
        if (
            (os.path.dirname(file) or str(file)) in text
            and text == one_line(text, 10**4)
            and not isinstance(error, UnicodeError)
        ):
            raise
        raise ValueError(f"{file}: {one_line(text, LONGEST)}") from error
    except Exception as error:
        if not (isinstance(error, _STUMBLES) or type(error) is Exception or _of_a_format(error)):
            raise
        raise ValueError(f"{file}: cannot be read ({reason_of(error)})") from error


def _of_a_format(error: Exception) -> bool:
    """Errors that libraries define for what they read, and that are no ValueError."""
    return type(error).__name__ in ("SafetensorError", "StrictDataclassError") or any(
        kind.__name__ == "StrictDataclassError" for kind in type(error).__mro__
    )
