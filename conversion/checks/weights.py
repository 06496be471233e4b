"""Numbers that cannot be right whatever the model was trained on: not finite, dead, twice there, out of proportion.

The limits are wide: a healthy model of any training stays far inside. Compares tensors of one kind with one another; it
knows no manifest.
"""

import hashlib
import math
import re
import statistics
from collections.abc import Collection, Iterator

import torch

from ..against import Fault, moves
from ..checkpoint import as_bytes
from ..digest import Measured
from ..naming import Leaf

NORM = (1e-5, 1e3)  # root-mean-square of the weights of an RMSNorm
LARGEST = 1e4  # of a weight
ALIKE = 12.0  # how far the size of a matrix may be from the median of its kind
NEAR = 100.0  # how far from the median of all matrices of its part of the model
NORMS_ALIKE = 50.0
SIZE = (0.01, 200.0)  # of most matrices of a kind, for inputs of size 1: after training, and before it, about 1
EMBEDDINGS = (1e-4, 10.0)  # root-mean-square of the embeddings
DEAD = 0.995  # share of zeros
HOLE = 24 << 10  # numbers in rows of zeros one after another: 64 KiB of BF16 without the rows at its ends
_FEW = 4  # fewer of a kind have no median worth comparing with
_SCALES = (1e-12, 1e6)


def faults_of(found: dict[str, Measured], table: dict[str, Leaf]) -> list[Fault]:
    """What is wrong with tensors that were read, by their raw names."""
    out = [fault for name, each in found.items() for fault in _one(name, each, table[name])]
    out += _hole_in_head(found)
    rest = _without(found, {fault.what for fault in out})
    implausible = _implausible(rest)
    out += dict.fromkeys(implausible.values())
    rest = _without(rest, implausible.keys())
    out += _sizes(rest, table)
    out += _twice(_without(rest, {fault.what for fault in out}))
    return out


def _without(found: dict[str, Measured], told: Collection[str]) -> dict[str, Measured]:
    return {name: each for name, each in found.items() if name not in told}


def _one(name: str, each: Measured, leaf: Leaf) -> Iterator[Fault]:
    """What one tensor shows by itself."""
    yield from _scales(name, each)
    if each.broken:
        yield Fault("not finite", name, f"{each.broken} of its numbers are not finite")
        return
    expert = ".experts." in name and len(each.shape) == 2
    if not name.endswith(".bias") and (each.rms == 0 or (len(each.shape) > 1 and each.zeros > DEAD)):
        share = "all" if each.rms == 0 else f"{each.zeros:.1%}"
        yield Fault("dead expert" if expert else "dead tensor", name, f"{share} of its numbers are zero")
        return
    largest, count = max(abs(each.least), abs(each.most)), math.prod(each.shape)
    alone = largest > 0.9 * each.rms * count**0.5 and count >= 64 and each.rms > 0
    if largest > LARGEST or alone:
        yield Fault(
            "out of proportion", name, f"a number of it is {largest:.3g}, as after a flipped bit or a wrong scale"
        )
    elif len(each.shape) == 1 and not name.endswith(".bias") and not NORM[0] <= each.rms <= NORM[1]:
        yield Fault("norm", name, f"its weights are of size {each.rms:.3g}, usual are numbers near 1")
    if each.rows:
        yield from _rows(name, each, leaf)
    elif each.alike and min(each.shape[0], math.prod(each.shape[1:])) > 1:
        yield Fault("dead tensor", name, "all of its rows, or all of its columns, are equal")
    elif _has_hole(name, each):
        yield Fault("zeros", name, f"{each.hole} rows one after another are zero, as where a part of a file is missing")


def _has_hole(name: str, each: Measured) -> bool:
    """Whether more rows one after another are zero than dead neurons explain. Tokens that are never used may be zero in
    embeddings and head.
    """
    numbers = each.hole * math.prod(each.shape[1:])
    vocabulary = name in ("tok_embeddings.weight", "output.weight")
    return not vocabulary and each.hole >= 4 and (numbers >= HOLE or each.hole * 2 >= each.shape[0])


def _hole_in_head(found: dict[str, Measured]) -> Iterator[Fault]:
    """Tokens that are zero in the head, many and one after another, though they are not in the embeddings."""
    head, embeddings = found.get("output.weight"), found.get("tok_embeddings.weight")
    if head and embeddings and head.rms and head.hole * 4 >= head.shape[0] and head.hole > 2 * embeddings.hole:
        yield Fault("zeros", "output.weight", f"{head.hole} rows one after another are zero, and not in the embeddings")


def _scales(name: str, each: Measured) -> Iterator[Fault]:
    for role, scales in each.scales.items():
        signed = not {"codes", "global_scale"} & each.parts.keys()  # scales of 4-bit groups have either sign
        if scales.broken:
            yield Fault("not finite", name, f"{scales.broken} numbers of its {role} are not finite")
        elif scales.negative and not signed:
            yield Fault("negative scale", name, f"{scales.negative} numbers of its {role} are negative")
        elif max(abs(scales.least), abs(scales.most)) > _SCALES[1] or 0 < scales.most < _SCALES[0]:
            yield Fault("scale", name, f"its {role} is {scales.most:.3g}, which is implausible")
        elif role != "scale" and scales.zero:
            yield Fault("scale", name, f"its {role} is zero")
    given = each.input_scale
    if given is not None and not (math.isfinite(given) and _SCALES[0] < given < _SCALES[1]):
        kind = "negative scale" if given < 0 else "input scale"
        yield Fault(kind, name, f"its input scale is {given:.3g}, which is implausible")


def _rows(name: str, each: Measured, leaf: Leaf) -> Iterator[Fault]:
    """A router's rows: an expert whose row is zero is chosen for nothing it sees, two equal rows are one expert."""
    zero = hashlib.sha256(as_bytes(torch.zeros(leaf.shape[1]))).hexdigest()[:8]
    first: dict[str, int] = {}
    for expert, row in enumerate(each.rows):
        if row == zero:
            yield Fault("dead expert", name, f"the row of expert {expert} is zero")
        elif row in first:
            yield Fault("duplicate expert", name, f"the rows of experts {first[row]} and {expert} are the same")
        first.setdefault(row, expert)


def kind_of(name: str) -> str:
    return re.sub(r"\d+", "N", name)


def _sizes(found: dict[str, Measured], table: dict[str, Leaf]) -> Iterator[Fault]:
    """Matrices and norms whose size is far from that of their kind, or of all."""
    kinds: dict[str, list[float]] = {}
    parts: dict[str, list[float]] = {}
    sizes: dict[str, float] = {}
    for name, each in found.items():
        if each.broken or each.rms == 0 or name.endswith(".bias"):
            continue
        fan_in = math.prod(each.shape[1:]) if len(each.shape) > 1 else 1
        sizes[name] = math.log(each.rms * fan_in**0.5)
        kinds.setdefault(kind_of(name), []).append(sizes[name])
        if table[name].linear or (name.startswith("vision_encoder.transformer") and len(each.shape) > 1):
            parts.setdefault(name.split(".")[0], []).append(sizes[name])
    medians = {key: statistics.median(each) for key, each in (kinds | parts).items() if len(each) >= _FEW}
    for name, size in sizes.items():
        vector = len(found[name].shape) == 1
        others = [(kind_of(name), NORMS_ALIKE if vector else ALIKE)]
        if not vector and (table[name].linear or name.startswith("vision_encoder.transformer")):
            others.append((name.split(".")[0], NEAR))
        ratios = [
            math.exp(medians[key] - size)
            for key, limit in others
            if key in medians and abs(medians[key] - size) > math.log(limit)
        ]
        if ratios:
            what = "too small" if ratios[0] > 1 else "too large"
            times = f"{max(ratios[0], 1 / ratios[0]):.3g} times"
            about = "" if vector else ", as if a scale were applied twice or not at all"
            kind = "norm" if vector else "scale"
            yield Fault(kind, name, f"its numbers are {times} {what} beside others of its kind{about}")


def _implausible(found: dict[str, Measured]) -> dict[str, Fault]:
    """Kinds of matrices of a size that no model has, whatever the others are: where all scales are wrong alike. One
    fault for each part of the model, by the names of all that it concerns.
    """
    kinds: dict[str, list[str]] = {}
    for name, each in found.items():
        if len(each.shape) > 1 and not each.broken and each.rms > 0:
            kinds.setdefault(kind_of(name), []).append(name)
    wrong: dict[tuple[str, bool], list[tuple[float, list[str]]]] = {}
    for names in kinds.values():
        embeddings = names == ["tok_embeddings.weight"]
        size = statistics.median(
            found[name].rms * (1.0 if embeddings else math.prod(found[name].shape[1:]) ** 0.5) for name in names
        )
        least, most = EMBEDDINGS if embeddings else SIZE
        if not least <= size <= most:
            wrong.setdefault((names[0].split(".")[0], size < least), []).append((size, names))
    out: dict[str, Fault] = {}
    for (_, small), members in wrong.items():
        size, names = members[0]
        others = " and of others" if len(members) > 1 else ""
        far = f"far too {'small' if small else 'large'}: of size {size:.3g} in place of about 1"
        about = "as if scales were applied twice or not at all"
        fault = Fault("scale", names[0], f"numbers of its kind{others} are {far}, {about}")
        out |= {name: fault for _, each in members for name in each}
    return out


def _twice(found: dict[str, Measured]) -> Iterator[Fault]:
    """Matrices that are there twice."""
    first: dict[tuple[str, str, tuple[int, ...]], str] = {}
    copies: dict[str, str] = {}
    for name, each in found.items():
        if len(each.shape) < 2 or each.least == each.most or name == "output.weight":
            continue
        key = (each.value, each.dtype, each.shape)
        if key in first:
            copies[name] = first[key]
        first.setdefault(key, name)
    yield from moves(copies, list(found), known=False)
