"""Which experts are used most, kept in a file beside a checkpoint: they are read first when the checkpoint is opened
again, and say how often a chosen expert will be in memory.

Must not know: tensors, what is in memory.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .files_saving import replacing

FILE = "expert_profile.json"
RANKS = 256  # equal shares of all experts by which ranks are counted
ENOUGH = 200  # uses with a rank from which their distribution is known


@dataclass(frozen=True)
class ExpertProfile:
    """How often each expert was chosen. tokens: how many were read and written; uses: int64 `[layers, experts]`; ranks:
    int64 `[RANKS]`, uses by how many experts had been used more until then, which hit rates follow from.
    """

    tokens: int
    uses: np.ndarray
    ranks: np.ndarray = field(default_factory=lambda: np.zeros(RANKS, dtype=np.int64))

    def hit_rate(self, slots: int) -> float:
        """The share of uses that go to the `slots` experts that were used most until then; where too few ranks were
        counted, to those that were used most in all, which is a choice in hindsight, so a little too high.
        """
        if (counted := int(self.ranks.sum())) >= ENOUGH:
            place = min(1.0, slots / self.uses.size) * RANKS
            known = np.concatenate([[0], np.cumsum(self.ranks)])
            return float(np.interp(place, np.arange(RANKS + 1), known) / counted)
        ranked = np.sort(self.uses, axis=None)[::-1]
        return int(ranked[:slots].sum()) / int(ranked.sum())

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
        text = json.dumps({"tokens": self.tokens, "uses": self.uses.tolist(), "ranks": self.ranks.tolist()})
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
        tokens, uses, ranks = content["tokens"], np.array(content["uses"]), np.array(content.get("ranks", [0] * RANKS))
        sound = isinstance(tokens, int) and tokens > 0 and int(uses.sum()) > 0 and ranks.shape == (RANKS,)
        sound = sound and all(np.issubdtype(n.dtype, np.integer) and bool((n >= 0).all()) for n in (uses, ranks))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is no profile of experts, or it is damaged. Remove it, or save it anew.")
    if uses.shape != (layers, experts):
        raise ValueError(
            f"{path} counts uses of {list(uses.shape)} experts, and the model has {[layers, experts]}. Remove the "
            "file, it belongs to another model."
        )
    return ExpertProfile(tokens, uses.astype(np.int64), ranks.astype(np.int64))
