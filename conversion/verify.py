"""`small4 verify`: two checkpoints of any layout compared tensor by tensor in real value, a few megabytes at a time.

Real value: quantised weights count as the numbers they stand for. Two quantised checkpoints are compared by code times scale, a
quantised one against a plain one by the bfloat16 that loading makes of it. Writes nothing.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import hub
from .checkpoint import Reader, Stored
from .console import add_json, progress_bar
from .formats.values import INPUT_ROLES, Plain, Values
from .naming import Leaf, leaves
from .source import Checkpoint, open_checkpoint
from .transforms import halves_to_interleaved


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same. max_abs is the largest absolute difference, None where there is no such number."""

    tensor: str
    reason: str
    max_abs: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 verify`."""
    parser.add_argument("a", metavar="A", help="a folder or a Hub repository, in any layout")
    parser.add_argument("b", metavar="B", help="the one to compare with")
    parser.add_argument("--revision", help="branch, tag or commit of what is on the Hub (default: its main branch)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out `small4 verify`; 0 if the two are equal, 1 otherwise. Raises what `compare` raises."""
    with progress_bar("comparing") as progress:
        compared, differences = compare(args.a, args.b, progress, args.revision)
    if args.json:
        print(json.dumps({"equal": not differences, "differences": [asdict(d) for d in differences]}))
    else:
        for d in differences:
            print(f"{d.tensor}: {d.reason}" + ("" if d.max_abs is None else f", largest difference {d.max_abs:.6g}"))
        print(f"{len(differences)} tensors differ" if differences else f"equal: {compared} tensors")
    return 1 if differences else 0


def compare(
    a: str | Path,
    b: str | Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    revision: str | None = None,
) -> tuple[int, list[Difference]]:
    """Compare two checkpoints; returns the number of tensors looked at and what differs, by the name stored in `a`.

    revision: of what is on the Hub; None: its main branch.

    Raises:
        CheckpointError: One of them is no checkpoint, or a file is damaged.
    """
    sides = [open_checkpoint(_folder(source, revision), strict=False) for source in (a, b)]
    found: dict[str, Difference] = {}
    tables = [{leaf.raw: leaf for leaf in leaves(side.config)} for side in sides]
    names = dict.fromkeys((*tables[0], *tables[1]))
    with Reader() as reader:
        for done, raw in enumerate(names):
            for difference in _compare_leaf(reader, sides, tables, raw):
                _add(found, difference)
            progress(done + 1, len(names))
    for side in sides:
        for tensor, reason in side.problems:
            _add(found, Difference(tensor, f"{reason} ({side.folder})", None))
    return len(names), list(found.values())


def _add(found: dict[str, Difference], new: Difference) -> None:
    """Keep one entry per stored tensor, with the largest difference of its slices."""
    old = found.get(new.tensor)
    if old is None or (old.max_abs is not None and new.max_abs is not None and new.max_abs > old.max_abs):
        found[new.tensor] = new


def _folder(source: str | Path, revision: str | None) -> Path:
    return hub.resolve(str(source), lambda _: None, None if Path(source).exists() else revision)


def _compare_leaf(
    reader: Reader, sides: list[Checkpoint], tables: list[dict[str, Leaf]], raw: str
) -> Iterator[Difference]:
    values = [_values(side, raw) for side in sides]
    if values[0] is None or values[1] is None:
        for side, value, other in zip(sides, values, reversed(values), strict=True):
            if value is None and other is not None:
                yield Difference(other.body.tensor, f"missing in {side.folder}", None)
        return
    name = values[0].body.tensor
    shapes = [table[raw if raw in table else "tok_embeddings.weight"].shape for table in tables]
    if shapes[0] != shapes[1]:
        yield Difference(name, f"shape {list(shapes[0])} against {list(shapes[1])}", None)
        return
    largest = _largest_difference(reader, sides, tables, raw, (values[0], values[1]))
    if largest:
        yield Difference(name, "values differ", largest if math.isfinite(largest) else None)
    yield from _compare_activation(reader, sides, raw, (values[0], values[1]))


def _values(side: Checkpoint, raw: str) -> Values | None:
    """The values of a leaf; a tied output head has those of the embedding."""
    if raw == "output.weight" and side.config.tie_word_embeddings:
        raw = "tok_embeddings.weight"
    return side.values.get(raw)


def _largest_difference(
    reader: Reader, sides: list[Checkpoint], tables: list[dict[str, Leaf]], raw: str, values: tuple[Values, Values]
) -> float:
    """Largest |a - b|; infinite where one is no finite number and the other is not the same; 0 if equal."""
    turned = (
        any(raw in table and table[raw].rotary_heads for table in tables)
        and sides[0].interleaved != sides[1].interleaved
    )
    if not turned and _same_codes(reader, *values):
        return 0.0
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
    largest = 0.0
    for one, other in zip(*streams, strict=True):
        wide = torch.float64 if torch.float32 in (one.dtype, other.dtype) else torch.float32
        x, y = one.to(wide), other.to(wide)
        if torch.equal(x, y):
            continue
        gap = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs())
        largest = max(largest, float(gap.nan_to_num(nan=math.inf).max()))
    return largest


def _rounding(one: Values, other: Values) -> torch.dtype | None:
    """What quantized numbers are rounded to before they are compared with plain ones; two quantized weights are compared exactly."""
    if one.quantized and other.quantized:
        return None
    return torch.float16 if "F16" in (one.body.dtype, other.body.dtype) else torch.bfloat16


def _same_codes(reader: Reader, one: Values, other: Values) -> bool:
    """Whether two leaves hold the same bytes, scales included; the quick answer for most tensors of most comparisons."""
    if isinstance(one, Plain) and isinstance(other, Plain):
        return reader.same_bytes(one.body, other.body)
    pairs = [_weight_parts(one), _weight_parts(other)]
    if pairs[0].keys() != pairs[1].keys() or not pairs[0]:
        return False
    return all(_same_part(reader, mine, pairs[1][role]) for role, mine in pairs[0].items())


def _same_part(reader: Reader, one: Stored | None, other: Stored | None) -> bool:
    return one is not None and other is not None and reader.same_bytes(one, other)


def _weight_parts(value: Values) -> dict[tuple[str, str], Stored | None]:
    """What the numbers of a held weight are made of, as it is stored; empty if that is not known by its parts."""
    held = value.held()
    if held is None or held.encode:
        return {}
    return {(held.form, role): p.stored for role, p in held.parts().items() if role not in INPUT_ROLES}


def _compare_activation(
    reader: Reader, sides: list[Checkpoint], raw: str, values: tuple[Values, Values]
) -> Iterator[Difference]:
    """Static scales of inputs, where both sides have the same format. A layout with one for gate and up together holds the larger."""
    if not (values[0].quantized and values[0].form == values[1].form):
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
