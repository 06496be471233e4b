"""The rows of `small4 check` about numbers: every tensor read once, judged by itself and against a manifest."""

import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from .. import manifest
from ..against import Fault, said_faults, tensor_faults
from ..checkpoint import CheckpointError, Reader
from ..digest import Measured
from ..manifest import Manifest
from ..naming import Leaf, leaves
from ..source import Checkpoint
from . import weights
from .rows import SKIPPED, Row, judged

Progress = Callable[[int, int], None]
SAMPLED = 6  # matrices of each layer that are read for --quick; gate and up, which may share a scale, count as one


def number_rows(source: Checkpoint, given: Manifest | None, quick: bool, progress: Progress) -> Iterator[Row]:
    """The rows about numbers: by themselves, and against the manifest."""
    table_of = {leaf.raw: leaf for leaf in leaves(source.config)}
    chosen = [leaf for leaf in table_of.values() if leaf.raw in source.values]
    if quick:
        chosen = _sample(chosen)
    total, done = sum(math.prod(leaf.shape) * 2 for leaf in chosen), 0
    found: dict[str, Measured] = {}
    unread: list[Fault] = []
    with Reader() as reader:
        for leaf in chosen:
            try:
                found[leaf.raw] = manifest.measure_leaf(source, leaf, reader)
            except CheckpointError as error:
                kind = "not finite" if "not finite" in str(error) else "unreadable"
                unread.append(Fault(kind, leaf.raw, str(error)))
            done += math.prod(leaf.shape) * 2
            progress(done, total)
        count = f"{len(found)} of {len(source.values)} tensors read" if quick else f"{len(found)} tensors read"
        summary = f"{count}: finite, in range, no expert dead or twice"
        yield judged("numbers", unread + weights.faults_of(found, table_of), summary, _statistics(found))
        if given is None:
            yield Row("manifest", SKIPPED, f"there is none (small4 manifest {source.folder.name} writes one)")
            return
        faults = [*said_faults(source, given), *tensor_faults(source, found, given, reader)]
    yield _against(source, given, faults, len(found))


def _against(source: Checkpoint, given: Manifest, faults: list[Fault], count: int) -> Row:
    """The row about the manifest. A quantized copy differs in what was quantized from the manifest of its source."""
    summary = f"{count} tensors are what the manifest says ({given.weights[:16]})"
    own = None
    with suppress(CheckpointError):
        own = manifest.of_folder(source.folder)
    data: dict[str, Any] = {"weights": given.weights}
    if own is not None and own.copy_of is not None:
        mean = sum(own.copy_of.errors.values()) / max(1, len(own.copy_of.errors))
        data["copy_of"] = own.copy_of.weights
        summary += f"; an {own.precision} copy of {own.copy_of.weights[:16]}, mean error {mean:.4f}"
        if own.weights != given.weights and own.copy_of.weights == given.weights:
            faults = [fault for fault in faults if fault.kind != "precision"]
    return judged("manifest", faults, summary, data)


def _sample(table_of: list[Leaf]) -> list[Leaf]:
    """Norms and routers, and of each layer a few matrices, the same ones each time."""
    draw = random.Random(0)
    chosen = {leaf.raw for leaf in table_of if len(leaf.shape) == 1 or leaf.raw.endswith(".gate.weight")}
    layers: dict[str, dict[str, list[str]]] = {}
    for leaf in table_of:
        if leaf.raw not in chosen and (match := re.match(r"(.*layers\.\d+)\.", leaf.raw)):
            pairs = layers.setdefault(match[1], {})
            pairs.setdefault(leaf.raw.replace(".w3.", ".w1."), []).append(leaf.raw)
    for pairs in layers.values():
        for names in draw.sample(list(pairs.values()), min(SAMPLED, len(pairs))):
            chosen.update(names)
    return [leaf for leaf in table_of if leaf.raw in chosen]


def _statistics(found: dict[str, Measured]) -> dict[str, Any]:
    """Size and range of each kind of tensor, for the JSON file."""
    kinds: dict[str, list[Measured]] = {}
    for name, each in found.items():
        kinds.setdefault(weights.kind_of(name), []).append(each)
    return {
        kind: {
            "tensors": len(members),
            "rms": [min(m.rms for m in members), max(m.rms for m in members)],
            "range": [min(m.least for m in members), max(m.most for m in members)],
        }
        for kind, members in kinds.items()
        if all(math.isfinite(m.least) and math.isfinite(m.most) for m in members)
    }
