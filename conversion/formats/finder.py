"""The tensors of a checkpoint while its weights are looked for: each weight takes what is its own, and nothing may be
left.

Knows names, dtypes and shapes; it does not know what a format means.
"""

import math
from pathlib import Path

from modeling_small4.loading_unfused import CACHE_SCALE

from ..checkpoint import Stored, wrong_tensor
from ..naming import Place
from .announced import Announced


class Finder:
    """Headers of a checkpoint by name. What does not fit is raised, or with `strict` off collected in `problems`.

    layout: that of the checkpoint. said: what its configuration announces.
    """

    def __init__(
        self, headers: dict[str, Stored], strict: bool, config_file: Path, layout: str, said: Announced
    ) -> None:
        self.headers = headers
        self.layout = layout
        self.said = said
        self.config_file = config_file
        self.problems: list[tuple[str, str]] = []
        self._left = dict.fromkeys(headers)
        self._strict = strict

    def has(self, name: str) -> bool:
        """Whether a tensor of this name is there."""
        return name in self.headers

    def dtype(self, name: str) -> str | None:
        """Its dtype, None where it is not there."""
        return self.headers[name].dtype if name in self.headers else None

    def find(
        self, name: str, shapes: list[tuple[int, ...]], dtypes: tuple[str, ...] = (), optional: bool = False
    ) -> Stored | None:
        """The tensor `name`, which must have one of these shapes and dtypes (any where none is given)."""
        stored = self.headers.get(name)
        if stored is None:
            if not optional:
                self.problem(name, self.config_file, "is missing")
            return None
        self._left.pop(name, None)
        if stored.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            self.problem(stored.tensor, stored.file, f"has shape {list(stored.shape)}, expected {wanted}")
            return None
        if dtypes and stored.dtype not in dtypes:
            self.problem(stored.tensor, stored.file, f"is {stored.dtype}, expected {' or '.join(dtypes)}")
            return None
        return stored

    def matrix(
        self, name: str, place: Place, shape: tuple[int, ...], dtypes: tuple[str, ...] = (), optional: bool = False
    ) -> Stored | None:
        """The part of `name` that belongs to the weight at `place`: all of it, or the rows of its expert in a fused
        tensor.
        """
        stored = self.find(name, [place.stacked(shape)], dtypes, optional)
        return stored and cut(stored, place, shape)

    def scalar(
        self, name: str, place: Place, shapes: list[tuple[int, ...]], dtypes: tuple[str, ...], optional: bool = False
    ) -> Stored | None:
        """The one number for the weight at `place`. shapes: those of a tensor that holds one for every expert or every
        matrix.
        """
        stored = self.find(name, shapes if place.index else [(), (1,)], dtypes, optional)
        if stored is None or not place.index:
            return stored
        shared = stored.count == place.experts
        return stored.part(place.index[0] if shared else place.number, ())

    def vector(self, name: str, dtypes: tuple[str, ...]) -> Stored | None:
        """A tensor of one dimension and any length, which whoever reads it checks."""
        stored = self.headers.get(name)
        return self.find(name, [(stored.count,) if stored else ()], dtypes)

    def leave(self, name: str) -> None:
        """Account for a tensor that says nothing the configuration does not."""
        self._left.pop(name, None)

    def cache_scales(self) -> list[str]:
        """Scales of keys and values in 8 bits, which no weight takes."""
        return sorted(filter(CACHE_SCALE.search, self._left))

    def finish(self) -> None:
        """Refuse what no weight has taken, except `cache_scales`."""
        for name in [name for name in self._left if not CACHE_SCALE.search(name)]:
            stored = self.headers[name]
            self.problem(stored.tensor, stored.file, f"is not part of the model that {self.config_file.name} describes")

    def problem(self, tensor: str, file: Path, reason: str) -> None:
        """Report that a tensor cannot be used.

        Raises:
            CheckpointError: With `strict`.
        """
        if self._strict:
            raise wrong_tensor(file, tensor, reason)
        if (tensor, reason) not in self.problems:
            self.problems.append((tensor, reason))


def cut(stored: Stored, place: Place, shape: tuple[int, ...]) -> Stored:
    """The matrix of `shape` at `place` out of a fused tensor, or the tensor itself."""
    return stored.part(place.number * math.prod(shape), shape) if place.index else stored
