"""The stored results, as the card's template sees them: a number that is missing is an error that names its file, key
and command.

Must not know: the template, how a number was measured. The commands are in `measures`.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model_card.card.measures import MEASURES

RESULTS = Path(__file__).resolve().parent.parent / "results"


class MissingNumber(ValueError):
    """Something that the card states is not stored."""


class Stored:
    """A part of a result file. `part["key"]`, `part.key` in a template: a plain number or text, or a part again.

    Raises:
        MissingNumber: On reading a key that is not there, or null.
    """

    def __init__(self, value: Any, where: str, remedy: str) -> None:
        self._value, self._where, self._remedy = value, where, remedy

    def __getitem__(self, key: Any) -> Any:
        try:
            found = self._value[key]
        except (KeyError, IndexError, TypeError):
            found = None
        file, _, inside = self._where.partition(": ")
        where = f"{file}: {inside} > {key}" if inside else f"{file}: {key}"
        if found is None:
            raise MissingNumber(f"The card needs a number that is not stored, {where}. {self._remedy}")
        return Stored(found, where, self._remedy) if isinstance(found, (dict, list)) else found

    def __iter__(self) -> Iterator[Any]:
        """Keys of an object, items of a list."""
        return iter(self._value) if isinstance(self._value, dict) else (self[i] for i in range(len(self._value)))

    def __len__(self) -> int:
        return len(self._value)

    def __str__(self) -> str:
        raise MissingNumber(f"The card prints {self._where}, which is no single number.")


class Results:
    """A folder of result files: `results["decode"]` is what decode.json holds.

    Args:
        folder: Where the files are.
        command: Which command makes each file, for the error about one that is missing.
    """

    def __init__(self, folder: Path = RESULTS, command: dict[str, str] | None = None) -> None:
        self.folder, self.command = folder, MEASURES if command is None else command
        self.files: dict[str, Stored] = {}

    def __getitem__(self, name: str) -> Stored:
        """The file's content.

        Raises:
            MissingNumber: There is no such file, or it is not JSON.
        """
        if name not in self.files:
            file, remedy = self.folder / f"{name}.json", f"Measure it: {self.command.get(name, 'no command is known')}"
            try:
                value = json.loads(file.read_text("utf-8"))
            except FileNotFoundError:
                raise MissingNumber(f"The card needs {shown(file)}, which is missing. {remedy}") from None
            except ValueError as error:
                raise MissingNumber(f"{shown(file)} is not JSON ({error}). {remedy}") from error
            self.files[name] = Stored(value, shown(file), remedy)
        return self.files[name]

    def checksum(self, name: str) -> str:
        """SHA-256 of the file."""
        return sha256(self.folder / f"{name}.json")


def sha256(file: Path) -> str:
    """Of the file's bytes, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def shown(file: Path) -> str:
    """A path without the machine's part of it."""
    return f"{file.parent.parent.name}/{file.parent.name}/{file.name}"
