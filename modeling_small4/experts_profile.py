"""Which experts are used most, kept in a file beside a checkpoint: they are read first when the checkpoint is opened
again, and say how often a chosen expert will be in memory.

Must not know: tensors, what is in memory.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files_saving import replacing

FILE = "expert_profile.json"


@dataclass(frozen=True)
class ExpertProfile:
    """How often each expert was chosen. tokens: how many were read and written; uses: int64 `[layers, experts]`."""

    tokens: int
    uses: np.ndarray

    def hit_rate(self, slots: int) -> float:
        """The share of uses that go to the `slots` experts that are used most."""
        ranked = np.sort(self.uses, axis=None)[::-1]
        return float(ranked[:slots].sum() / ranked.sum())

    def ranked(self) -> list[tuple[int, int]]:
        """Layer and expert of those that were used, most used first."""
        order = np.argsort(-self.uses, axis=None, kind="stable")
        places = (np.unravel_index(index, self.uses.shape) for index in order if self.uses.flat[index])
        return [(int(layer), int(expert)) for layer, expert in places]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the file into a folder that exists, whole or not at all.

        Raises:
            ValueError: Nothing was counted yet, or there is a link in the file's place.
            OSError: The folder cannot be written to.
        """
        path = Path(folder) / FILE
        if not self.tokens:
            raise ValueError("No token was read yet, so nothing is known of the experts. Generate some answers first.")
        if path.is_symlink():
            raise ValueError(f"{path} is a link. Remove it, or name another folder.")
        text = json.dumps({"tokens": self.tokens, "uses": self.uses.tolist()})
        with replacing(path) as temporary:
            os.chmod(temporary, 0o644)  # others who may read the checkpoint may read this
            Path(temporary).write_text(text, encoding="utf-8")
        return path


def read_profile(folder: str | os.PathLike[str], layers: int, experts: int) -> ExpertProfile | None:
    """The profile beside a checkpoint of so many layers with routed experts, and experts in each; None without one.

    Raises:
        ValueError: The file is no profile, or of another model.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tokens, uses = content["tokens"], np.array(content["uses"])
        sound = isinstance(tokens, int) and tokens > 0 and np.issubdtype(uses.dtype, np.integer)
        sound = sound and bool((uses >= 0).all()) and int(uses.sum()) > 0
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is no profile of experts, or it is damaged. Remove it, or save it anew.")
    if uses.shape != (layers, experts):
        raise ValueError(
            f"{path} counts uses of {list(uses.shape)} experts, and the model has {[layers, experts]}. Remove the "
            "file, it belongs to another model."
        )
    return ExpertProfile(tokens, uses.astype(np.int64))
