"""`small4 verify`: two checkpoints of any format compared tensor by tensor in real value, a few megabytes at a time.

Real value: quantized weights count as the numbers they represent. Two quantized checkpoints are compared by code times
scale, a quantized and a plain one by the bfloat16 numbers that loading gives. If one checkpoint is a quantization of
the other, no quantized weight is equal: then each may differ by its format's rounding, and everything else must be
equal. Of one checkpoint alone, or of a checkpoint and a manifest, the numbers are held against the manifest's hashes.
Writes nothing.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from modeling_small4.files_reading import one_line
from modeling_small4.files_saving import MANIFEST

from . import against, hub, manifest
from .checkpoint import CheckpointError, Reader, Stored
from .console import add_json, progress_bar
from .formats.values import INPUT_ROLES, Plain, Values
from .naming import Leaf, leaves
from .source import Checkpoint, open_checkpoint
from .transforms import halves_to_interleaved

_LAST_BIT = 2.0**-22  # relative error of a multiplication in place of a division, in float32


@dataclass(frozen=True)
class Difference:
    """A tensor that differs. max_abs is the largest absolute difference, or None if there is no such number."""

    tensor: str
    reason: str
    max_abs: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 verify`."""
    parser.add_argument("a", metavar="A", help="a folder or a Hub repository, in any layout")
    about = "the one to compare with, or a manifest (default: the manifest in A)"
    parser.add_argument("b", metavar="B", nargs="?", help=about)
    parser.add_argument(
        "--revision", help="branch, tag or commit of a repository on the Hub (default: its main branch)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run `small4 verify`; returns 0 if the two are equal, 1 otherwise. Raises what `compare_folders` raises."""
    with progress_bar("comparing") as progress:
        if args.b is None or Path(args.b).suffix == ".json":
            report = compare_with_manifest(args.a, args.b and Path(args.b), progress, args.revision)
        else:
            report = compare_folders(args.a, args.b, progress, args.revision)
    for note in (*report.notes, *report.stale):
        print(note, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(report.summary()))
        return 1 if report.differences else 0
    for d in report.differences:
        print(
            f"{one_line(d.tensor, 120)}: {d.reason}"
            + ("" if d.max_abs is None else f", largest difference {d.max_abs:.6g}")
        )
    for form, e in report.errors.items():
        print(
            f"{e.tensors} tensors differ by the rounding of {form}: relative error {e.mean:.4f}, largest "
            f"{e.largest:.4f} "
            f"(believed up to {e.expected:.4f})"
        )
    print(f"{len(report.differences)} tensors differ" if report.differences else f"equal: {report.compared} tensors")
    return 1 if report.differences else 0


@dataclass(frozen=True)
class Rounding:
    """Weights that differ by quantization. Errors are root-mean-square and relative; `expected` is the largest that is
    accepted.
    """

    tensors: int
    mean: float
    largest: float
    expected: float


@dataclass(frozen=True)
class Report:
    """How two checkpoints compare. errors: by format, where one is a quantization of the other. stale: a sentence for
    each manifest in one of the folders that is of other weights. notes: about how the folders were read.
    """

    compared: int
    differences: list[Difference]
    errors: dict[str, Rounding]
    stale: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether all numbers are the same."""
        return not self.differences and not self.errors

    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        out: dict[str, Any] = {"equal": not self.differences, "differences": [asdict(d) for d in self.differences]}
        out |= {"stale": self.stale} if self.stale else {}
        return out | ({"errors": {form: asdict(e) for form, e in self.errors.items()}} if self.errors else {})


def compare(
    a: str | Path,
    b: str | Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    revision: str | None = None,
) -> tuple[int, list[Difference]]:
    """The number of tensors compared and the differences; see `compare_folders`."""
    report = compare_folders(a, b, progress, revision)
    return report.compared, report.differences


def compare_folders(
    a: str | Path,
    b: str | Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    revision: str | None = None,
) -> Report:
    """Compare two checkpoints. Differences are listed by the name stored in `a`. revision: of repositories on the Hub;
    None: their main branch.

    Raises:
        CheckpointError: One of them is not a checkpoint, or a file is damaged.
    """
    sides = [open_checkpoint(_folder(source, revision), strict=False) for source in (a, b)]
    report = compare_checkpoints(sides, progress)
    notes = [f"{side.folder}: {remark}" for side in sides for remark in side.remarks]
    return replace(report, stale=_stale(sides, report.exact, progress), notes=notes)


def compare_checkpoints(
    sides: list[Checkpoint], progress: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Compare two opened checkpoints, as `compare_folders` does."""
    found: dict[str, Difference] = {}
    tables = [{leaf.raw: leaf for leaf in leaves(side.config)} for side in sides]
    names = dict.fromkeys((*tables[0], *tables[1]))
    rounded = _Rounded()
    with Reader() as reader:
        for done, raw in enumerate(names):
            for difference in _compare_leaf(reader, sides, tables, raw, rounded):
                _add(found, difference)
            progress(done + 1, len(names))
    errors = rounded.judge(found)
    for side in sides:
        for tensor, reason in side.problems:
            _add(found, Difference(tensor, f"{reason} ({side.folder})", None))
    return Report(len(names), list(found.values()), errors)


def compare_with_manifest(
    a: str | Path,
    file: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    revision: str | None = None,
) -> Report:
    """Hold a checkpoint against a manifest, by default the one in its folder.

    Raises:
        CheckpointError: It is no checkpoint or has no manifest, or a file is damaged.
    """
    source = open_checkpoint(_folder(a, revision, as_loaded=True), strict=False, as_loaded=True)
    given = manifest.of_folder(source.folder) if file is None else manifest.read(file)
    if given is None:
        raise CheckpointError(f"{a}: holds no {MANIFEST}; name what to compare with, or write one: small4 manifest {a}")
    source = manifest.reopened(source, given.model.get(against.RULE))
    faults = against.check_folder(source, given, progress)
    differences = [Difference(fault.what, fault.reason, None) for fault in faults]
    differences += [Difference(tensor, reason, None) for tensor, reason in source.problems]
    return Report(len(source.values), differences, {}, notes=list(source.remarks))


def _stale(sides: list[Checkpoint], equal: bool, progress: Callable[[int, int], None]) -> list[str]:
    """A sentence about each manifest in the folders that is not of the weights that are there. Of two equal
    checkpoints with equal manifests one is read.
    """
    out: list[str] = []
    given = []
    for side in sides:
        try:
            if (found := manifest.of_folder(side.folder)) is not None:
                given.append((side, found))
        except CheckpointError as error:
            out.append(str(error))
    if equal and len(given) == 2 and given[0][1].weights == given[1][1].weights:
        del given[1]
    for side, found in given:
        faults = against.check_folder(manifest.reopened(side, found.model.get(against.RULE)), found, progress)
        if faults:
            more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
            about = "is stale, what it describes has changed since it was written"
            out.append(f"{side.folder / MANIFEST}: {about} ({faults[0]}{more})")
    return out


class _Rounded:
    """Unequal weights of two formats, kept until it is known whether any weight of these formats is equal."""

    def __init__(self) -> None:
        self.equal: set[str] = set()
        self.apart: list[tuple[str, float, float, Difference]] = []  # formats, error, expected error

    def judge(self, found: dict[str, Difference]) -> dict[str, Rounding]:
        """Add what cannot be rounding to `found`; returns the rest by formats."""
        errors: dict[str, list[tuple[float, float]]] = {}
        for form, error, expected, difference in self.apart:
            if not error <= (_LAST_BIT if form in self.equal else expected):
                _add(found, difference)
            else:
                errors.setdefault(form, []).append((error, expected))
        return {form: _rounding_of(each) for form, each in errors.items()}


def _rounding_of(each: list[tuple[float, float]]) -> Rounding:
    errors, expected = zip(*each, strict=True)
    return Rounding(len(each), sum(errors) / len(each), max(errors), max(expected))


def _add(found: dict[str, Difference], new: Difference) -> None:
    """Keep one entry per stored tensor, with the largest difference of its slices."""
    old = found.get(new.tensor)
    if old is None or (old.max_abs is not None and new.max_abs is not None and new.max_abs > old.max_abs):
        found[new.tensor] = new


def _folder(source: str | Path, revision: str | None, as_loaded: bool = False) -> Path:
    revision = None if Path(source).exists() else revision
    return hub.resolve(str(source), lambda _: None, revision, as_loaded)


def _compare_leaf(
    reader: Reader, sides: list[Checkpoint], tables: list[dict[str, Leaf]], raw: str, rounded: _Rounded
) -> Iterator[Difference]:
    values = [_values(side, raw) for side in sides]
    if values[0] is None or values[1] is None:
        for side, value, other in zip(sides, values, reversed(values), strict=True):
            if value is None and other is not None:
                yield Difference(other.body.tensor, f"missing in {side.folder}", None)
        return
    pair = values[0], values[1]
    name = pair[0].body.tensor
    shapes = [table[raw if raw in table else "tok_embeddings.weight"].shape for table in tables]
    if shapes[0] != shapes[1]:
        yield Difference(name, f"shape {list(shapes[0])} against {list(shapes[1])}", None)
        return
    gap, form = _gap(reader, sides, tables, raw, pair), _formats(pair)
    difference = Difference(name, "values differ", gap.largest if math.isfinite(gap.largest) else None)
    if gap.largest and form:
        expected = math.hypot(*(value.expected_error() for value in pair))
        rounded.apart.append((form, gap.relative, expected, difference))
    elif gap.largest:
        yield difference
    elif form and gap.size:
        rounded.equal.add(form)
    yield from _compare_activation(reader, sides, raw, pair)


def _formats(pair: tuple[Values, Values]) -> str:
    """The formats of two weights, if one can be a quantization of the other, or both of a third; empty for two that are
    stored alike.
    """
    parts = [[part for part in value.inner() if part.quantized] for value in pair]
    variants = [{part.variant() for part in each} for each in parts]
    return "" if variants[0] == variants[1] else "+".join(sorted({part.form for each in parts for part in each}))


def _values(side: Checkpoint, raw: str) -> Values | None:
    """The values of a leaf; a tied output head has those of the embedding."""
    if raw == "output.weight" and side.config.tie_word_embeddings:
        raw = "tok_embeddings.weight"
    return side.values.get(raw)


@dataclass
class _Gap:
    """How much two tensors differ: the largest |a - b|, infinite if one is not finite and the other is not the same;
    the sums of squares of the differences and of the numbers.
    """

    largest: float = 0.0
    apart: float = 0.0
    size: float = 0.0

    @property
    def relative(self) -> float:
        """Root-mean-square difference, relative to the root-mean-square of the numbers."""
        return math.sqrt(self.apart / self.size) if self.size else math.inf


def _gap(
    reader: Reader, sides: list[Checkpoint], tables: list[dict[str, Leaf]], raw: str, values: tuple[Values, Values]
) -> _Gap:
    turned = (
        any(raw in table and table[raw].rotary_heads for table in tables)
        and sides[0].interleaved != sides[1].interleaved
    )
    if not turned and _same_codes(reader, *values):
        return _Gap()
    rounded = _rounding(*values)
    streams: list[Iterator[torch.Tensor]] = []
    for side, table, value in zip(sides, tables, values, strict=True):
        heads = table[raw].rotary_heads if raw in table else 0
        if heads and not side.interleaved:
            streams.append(iter([halves_to_interleaved(torch.cat(list(value.numbers(reader))), heads)]))
        elif heads:
            streams.append(iter([torch.cat(list(value.numbers(reader)))]))
        else:
            streams.append(value.numbers(reader, rounded))
    out = _Gap()
    for one, other in zip(*streams, strict=True):
        wide = torch.float64 if torch.float32 in (one.dtype, other.dtype) else torch.float32
        x, y = one.to(wide), other.to(wide)
        out.size += float(torch.maximum(x.square().sum(), y.square().sum()))
        if torch.equal(x, y):
            continue
        gap = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs())
        out.largest = max(out.largest, float(gap.nan_to_num(nan=math.inf).max()))
        out.apart += float(gap.square().sum())
    return out


def _rounding(one: Values, other: Values) -> torch.dtype | None:
    """The dtype to which quantized numbers are rounded before they are compared with plain ones. Two quantized weights
    are compared exactly.
    """
    if one.quantized and other.quantized:
        return None
    return torch.float16 if "F16" in (one.body.dtype, other.body.dtype) else torch.bfloat16


def _same_codes(reader: Reader, one: Values, other: Values) -> bool:
    """Whether two leaves hold the same bytes, scales included. This is quick and decides most tensors of most
    comparisons.
    """
    if isinstance(one, Plain) and isinstance(other, Plain):
        return reader.same_bytes(one.body, other.body)
    pairs = [_weight_parts(one), _weight_parts(other)]
    if pairs[0].keys() != pairs[1].keys() or not pairs[0]:
        return False
    return all(_same_part(reader, mine, pairs[1][role]) for role, mine in pairs[0].items())


def _same_part(reader: Reader, one: Stored | None, other: Stored | None) -> bool:
    return one is not None and other is not None and reader.same_bytes(one, other)


def _weight_parts(value: Values) -> dict[tuple[str, str], Stored | None]:
    """The stored parts from which the numbers of a held weight are made; empty if they are not known."""
    held = value.held()
    if held is None or held.encode:
        return {}
    return {(held.form, role): p.stored for role, p in held.parts().items() if role not in INPUT_ROLES}


def _compare_activation(
    reader: Reader, sides: list[Checkpoint], raw: str, values: tuple[Values, Values]
) -> Iterator[Difference]:
    """Compare static input scales, if both sides have the same format. A layout with one scale for gate and up together
    holds the larger.
    """
    if not values[0].quantized or values[0].variant() != values[1].variant():
        return
    first, second = (_input_scale(value) for value in values)
    if first is None or second is None:
        for side, mine, other in ((sides[0], first, second), (sides[1], second, first)):
            if mine is None and other is not None:
                yield Difference(other.tensor, f"missing in {side.folder}", None)
        return
    partners = [_partner(side, raw) for side in sides]
    shared = any(p is not None and p == mine for p, mine in zip(partners, (first, second), strict=True))
    numbers = [
        max(_number(reader, mine), _number(reader, partner) if shared and partner else 0.0)
        for mine, partner in zip((first, second), partners, strict=True)
    ]
    if numbers[0] != numbers[1]:
        yield Difference(first.tensor, "activation scales differ", abs(numbers[0] - numbers[1]))


def _input_scale(value: Values | None) -> Stored | None:
    parts = held.parts() if value and (held := value.held()) else {}
    return next((parts[role].stored for role in INPUT_ROLES if role in parts), None)


def _partner(side: Checkpoint, raw: str) -> Stored | None:
    """The activation scale of the up projection for a routed expert's gate projection, and the reverse."""
    if ".experts." not in raw or ".w2." in raw:
        return None
    other = raw.replace(".w1.", ".w3.") if ".w1." in raw else raw.replace(".w3.", ".w1.")
    return _input_scale(side.values.get(other))


def _number(reader: Reader, stored: Stored) -> float:
    return float(reader.tensor(stored).reshape(()))
