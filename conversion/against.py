"""A checkpoint held against a manifest: which tensors are not what it says, and what has happened to each.

A hash tells only that numbers differ. What happened is found by trying: the numbers of another tensor, the same ones
turned, scaled or in another order. Knows manifests and names; it reads tensors again only where they differ.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from modeling_small4.configuration_small4 import Small4TextConfig
from modeling_small4.files_reading import one_line, reason_of, shown

from .checkpoint import CheckpointError, Reader
from .digest import Measured, canonical, value_hash
from .manifest import Entry, Manifest, measure_leaf
from .naming import Leaf, leaves
from .raw import different_facts, facts
from .source import Checkpoint
from .transforms import halves_to_interleaved, interleaved_to_halves
from .vocabulary import TEKKEN, TOKENIZER, read_vocabulary

RULE = "text_config.softmax_scale_rule"  # the key of a manifest's `model` that names the softmax scale
_SCALED = 2.0  # how many times larger or smaller plain numbers are called scaled rather than other ones
_HEADS = "vision_config.num_attention_heads"
_PREFIX = re.compile(r"((?:vision_encoder\.transformer\.)?layers\.\d+\.)(experts\.\d+\.)?")
Turn = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Fault:
    """Something that is not as the manifest says. kind: one word or two for it. what: the tensors, key or file."""

    kind: str
    what: str
    reason: str

    @classmethod
    def of_file(cls, kind: str, folder: Path, error: Exception) -> "Fault":
        """What a reader says of a file in `folder`, whose path is where its message begins; else of all of it."""
        place, colon, reason = one_line(error, 600).partition(": ")
        if not colon or not place.startswith(str(folder)):
            return cls(kind, folder.name, reason_of(error))
        return cls(kind, place[len(str(folder)) :].strip("/\\") or folder.name, reason)

    def __str__(self) -> str:
        return one_line(f"{one_line(self.what, 120)}: {self.reason}", 600)


def check_folder(
    source: Checkpoint, manifest: Manifest, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Fault]:
    """Read every tensor of a checkpoint and hold it against a manifest.

    Raises:
        CheckpointError: A tensor cannot be read.
    """
    table = [leaf for leaf in leaves(source.config) if leaf.raw in source.values]
    with Reader() as reader:
        found = {}
        for number, leaf in enumerate(table):
            found[leaf.raw] = measure_leaf(source, leaf, reader)
            progress(number + 1, len(table))
        return [*said_faults(source, manifest), *tensor_faults(source, found, manifest, reader)]


def said_faults(source: Checkpoint, manifest: Manifest) -> list[Fault]:
    """What differs without a look at numbers: configuration, vocabulary, precision, tensors that are missing or
    extra.
    """
    out = []
    mine = facts(source.config)
    for key in different_facts(mine, manifest.model):
        kind = "softmax rule" if key == RULE else "configuration"
        one, other = shown(mine.get(key)), shown(manifest.model[key])
        out.append(Fault(kind, key, f"is {one} in {source.config_file.name}, the manifest says {other}"))
    if manifest.tokenizer is not None:
        out += _tokenizer_faults(source, manifest.tokenizer)
    out += [
        Fault("missing tensor", name, "is in the manifest, not in the checkpoint")
        for name in manifest.tensors
        if name not in source.values
    ]
    out += [
        Fault("extra tensor", name, "is not in the manifest") for name in source.values if name not in manifest.tensors
    ]
    return out


def _tokenizer_faults(source: Checkpoint, said: dict[str, int | str]) -> list[Fault]:
    """Another vocabulary than a manifest says, or other rules by which texts become tokens."""
    raw = source.layout == "mistral"
    try:
        words = read_vocabulary(source.folder, tekken=raw)
    except CheckpointError as error:
        return [Fault.of_file("tokenizer", source.folder, error)]
    if words is None:
        return [Fault("tokenizer", TEKKEN if raw else TOKENIZER, "is missing, the manifest names a tokenizer")]
    if words.sha256 != said["sha256"]:
        counts = f"{words.tokens} tokens, the manifest's {said['tokens']}"
        return [Fault("tokenizer", words.file, f"is the tokenizer of another model ({counts})")]
    if words.rules != said.get("rules", words.rules):
        what = "another pattern splits texts into words" if words.ranked else "its merges are not in the tokens' order"
        return [Fault("tokenizer", words.file, f"makes other tokens of texts than the manifest says: {what}")]
    return []


def tensor_faults(source: Checkpoint, found: dict[str, Measured], manifest: Manifest, reader: Reader) -> list[Fault]:
    """What is wrong with the tensors that were read, each fault once: two swapped experts are one."""
    table = {leaf.raw: leaf for leaf in leaves(source.config)}
    differ = [name for name, each in found.items() if _differs(each, manifest.tensors.get(name))]
    moved = _moved(differ, found, manifest)
    out = list(moves(moved, list(found)))
    otherwise = []
    for name in differ:
        mine, entry = found[name], manifest.tensors[name]
        if name in moved:
            continue
        if mine.parts.keys() != entry.parts.keys():
            otherwise.append(name)
        elif not _of_other_heads(source, table[name], entry, manifest.model.get(_HEADS), reader):
            out.append(_explained(source, table[name], mine, entry, reader))
    if otherwise:
        some = otherwise[0] if len(otherwise) == 1 else f"{len(otherwise)} tensors, such as {otherwise[0]}"
        kinds = f"the checkpoint is {source.precision()}, the manifest of {manifest.precision}"
        out.append(Fault("precision", some, f"stored otherwise than in the manifest, with other values ({kinds})"))
    out += _input_scale_faults(found, manifest, moved)
    return out


def _differs(mine: Measured, entry: Entry | None) -> bool:
    if entry is None:
        return False
    if (mine.shape, mine.value, mine.dtype) != (entry.shape, entry.value, entry.dtype):
        return True
    return mine.parts.keys() == entry.parts.keys() and mine.parts != entry.parts


def _of_other_heads(source: Checkpoint, leaf: Leaf, entry: Entry, heads: object, reader: Reader) -> bool:
    """Whether rotary rows are what they have to be, and only the configuration's number of heads, by which they are
    put in order, is not.
    """
    if source.interleaved or not leaf.rotary_heads or not isinstance(heads, int) or heads < 1:
        return False
    if heads == leaf.rotary_heads or leaf.shape[0] % (2 * heads):
        return False
    numbers = canonical(source.values[leaf.raw], replace(leaf, rotary_heads=heads), False, reader)
    return value_hash(numbers) == entry.value


def _moved(differ: list[str], found: dict[str, Measured], manifest: Manifest) -> dict[str, str]:
    """The tensor of the manifest whose numbers a tensor holds, for those that hold another's."""
    places: dict[str, list[str]] = {}
    for name, entry in manifest.tensors.items():
        places.setdefault(entry.value, []).append(name)
    out = {}
    for name in differ:
        if found[name].value == manifest.tensors[name].value:
            continue
        others = [
            other for other in places.get(found[name].value, []) if manifest.tensors[other].dtype == found[name].dtype
        ]
        if others:
            tail = name[_end_of_prefix(name) :]
            out[name] = next((other for other in others if other.endswith(tail) and other in differ), others[0])
    return out


def _end_of_prefix(name: str) -> int:
    match = _PREFIX.match(name)
    return match.end() if match else 0


def moves(moved: dict[str, str], names: list[str], known: bool = True) -> Iterator[Fault]:
    """Whole layers, then whole experts, then single tensors that hold what belongs elsewhere.

    moved: by the name of a tensor, that of the one whose numbers it holds. names: of all tensors that were looked at.
    known: whether it is known to which of two the numbers belong.
    """
    left = dict(moved)
    for level, kind in ((1, "layer"), (2, "expert")):
        members: dict[str, list[str]] = {}
        for name in names:
            if (match := _PREFIX.match(name)) and (level == 1 or match[2]):
                members.setdefault(match[1] if level == 1 else match[0], []).append(name)
        whole = {}
        for prefix, each in members.items():
            wrong = [name for name in each if name in left]
            origins = {_swap_prefix(name, left[name], prefix) for name in wrong}
            if len(wrong) * 2 > len(each) and len(origins) == 1 and (origin := origins.pop()) not in (None, prefix):
                whole[prefix.rstrip(".")] = str(origin).rstrip(".")
                for name in wrong:
                    del left[name]
        yield from _pairs(whole, kind, known)
    yield from _pairs(left, "tensor", known)


def _swap_prefix(name: str, origin: str, prefix: str) -> str | None:
    """The prefix in `origin` in place of `prefix` in `name`, if the rest is the same."""
    tail = name.removeprefix(prefix)
    return origin.removesuffix(tail) if origin.endswith(tail) else None


def _pairs(moved: dict[str, str], kind: str, known: bool) -> Iterator[Fault]:
    done = set()
    for name, origin in moved.items():
        if name in done:
            continue
        if moved.get(origin) == name:
            done.add(origin)
            yield Fault(f"swapped {kind}s", f"{name} and {origin}", "are swapped: each holds the other's numbers")
        elif origin in moved:
            yield Fault(f"moved {kind}", name, f"holds the numbers of {origin}")
        elif known:
            yield Fault(f"duplicate {kind}", name, f"holds a copy of {origin} in place of its own numbers")
        else:
            yield Fault(f"duplicate {kind}", f"{origin} and {name}", "are the same")


def _explained(source: Checkpoint, leaf: Leaf, mine: Measured, entry: Entry, reader: Reader) -> Fault:
    """What has happened to one tensor whose numbers are nowhere in the manifest."""
    if mine.shape != entry.shape:
        return Fault("shape", leaf.raw, f"has shape {list(mine.shape)}, the manifest says {list(entry.shape)}")
    if mine.broken:
        return Fault("not finite", leaf.raw, f"{mine.broken} of its numbers are not finite")
    changed = [role for role, digest in entry.parts.items() if mine.parts[role] != digest]
    if mine.value == entry.value:
        return Fault("stored form", leaf.raw, f"{', '.join(changed)}: not the manifest's, though of the same numbers")
    wrong = [n for n, (one, other) in enumerate(zip(mine.rows, entry.rows, strict=False)) if one != other]
    if entry.rows and Counter(mine.rows) == Counter(entry.rows):
        return Fault("permuted rows", leaf.raw, f"its rows are in another order: experts {_numbers(wrong)}")
    if 0 < len(wrong) < len(entry.rows):
        return Fault("changed numbers", leaf.raw, f"all is right but the rows of these experts: {_numbers(wrong)}")
    for kind, reason, turn in _turns(leaf, source.config.text_config):
        whole = torch.cat(list(canonical(source.values[leaf.raw], leaf, source.interleaved, reader)))
        if value_hash(iter([turn(whole).contiguous()])) == entry.value:
            return Fault(kind, leaf.raw, reason)
    ratio = mine.rms / entry.rms if entry.rms else float("inf")
    outlier = max(abs(mine.least), abs(mine.most))
    count = max(1, int(torch.Size(mine.shape).numel()))
    if outlier > 0.9 * mine.rms * count**0.5 and count > 4:
        return Fault(
            "changed number", leaf.raw, f"one number, {outlier:.3g}, exceeds all others, as after a flipped bit"
        )
    if changed and all("scale" in role for role in changed):
        if len(changed) == 1 and _twice(mine, changed[0], ratio):
            return Fault("scale", leaf.raw, f"its {changed[0]} is applied twice: numbers {ratio:.4g} times as large")
        size = "of the same size" if abs(ratio - 1) < 1e-5 else f"{ratio:.6g} times as large"
        return Fault("scale", leaf.raw, f"its codes are the manifest's, its {', '.join(changed)} not: numbers {size}")
    if not changed and (1 < ratio / _SCALED < math.inf or 0 < ratio * _SCALED < 1):
        return Fault("scale", leaf.raw, f"its numbers are {ratio:.4g} times as large as they should be")
    which = f"{', '.join(changed)}: not the manifest's; " if changed else ""
    some = f"a few, as after a flipped bit, or all (in size {ratio:.4g} times the right ones)"
    return Fault("changed numbers", leaf.raw, f"{which}numbers are other ones: {some}")


def _twice(mine: Measured, role: str, ratio: float) -> bool:
    """Whether the one scale of a weight is the square of what it has to be."""
    scales = mine.scales.get(role)
    if scales is None or scales.least != scales.most or scales.most <= 0:
        return False
    once = scales.most**0.5  # a divisor has the opposite effect
    return abs((ratio / once if role == "scale" else ratio * once) - 1) < 0.02


def _numbers(wrong: list[int]) -> str:
    return ", ".join(map(str, wrong[:8])) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")


def _turns(leaf: Leaf, text: Small4TextConfig) -> Iterator[tuple[str, str, Turn]]:
    """(kind, what happened, what takes it back) of the changes that may have been made to a matrix."""
    rope, nope, wide, heads = text.qk_rope_head_dim, text.qk_nope_head_dim, text.v_head_dim, text.num_attention_heads
    if len(leaf.shape) != 2:
        return
    if leaf.shape[0] == leaf.shape[1]:
        yield "transposed", "is transposed", lambda x: x.T
    yield "negated", "has the opposite sign", lambda x: -x
    if leaf.rotary_heads:
        paired = leaf.rotary_heads
        yield "rope pairing", _PAIRS, lambda x: halves_to_interleaved(x, paired)
        yield "rope pairing", _PAIRS, lambda x: interleaved_to_halves(x, paired)
    if leaf.raw.endswith((".wq_b.weight", ".wq.weight")) and not leaf.rotary_heads and leaf.raw.startswith("layers."):
        for change in (halves_to_interleaved, interleaved_to_halves):
            yield "rope pairing", _PAIRS, lambda x, change=change: _rope_rows(x, heads, nope, rope, change)  # type: ignore[misc]
        yield "head order", "has the rotary part of each head first", lambda x: _parts_swapped(x, heads, rope)
    if leaf.raw.endswith(".wkv_a_with_mqa.weight"):
        rank = text.kv_lora_rank
        for change in (halves_to_interleaved, interleaved_to_halves):
            yield "rope pairing", _PAIRS, lambda x, change=change: _rope_rows(x, 1, rank, rope, change)  # type: ignore[misc]
        yield "head order", "has the rotary part before the latent", lambda x: _parts_swapped(x, 1, rope)
    if leaf.raw.endswith(".wkv_b.weight"):
        yield "keys and values", "has the values of each head before its keys", lambda x: _parts_swapped(x, heads, wide)
        yield "keys and values", "has all keys before all values", lambda x: _by_heads(x, heads, nope, True)
        yield "keys and values", "has all values before all keys", lambda x: _by_heads(x, heads, wide, False)
        for each in (heads, 1):
            yield "keys and values", _HALVES, lambda x, each=each: _parts_swapped(x, each, len(x) // each // 2)  # type: ignore[misc]
    yield "order of rows", _HALVES, lambda x: _parts_swapped(x, 1, len(x) // 2)
    yield "order of rows", "has its rows in reverse order", lambda x: x.flip(0)
    yield "order of columns", "has its columns in reverse order", lambda x: x.flip(1)


_HALVES = "has the two halves of its rows swapped"
_PAIRS = "has its rotary rows in the other pairing (interleaved in place of halves, or the reverse)"


def _rope_rows(
    rows: torch.Tensor, heads: int, before: int, rope: int, change: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    """The last `rope` rows of each head, which has `before` others, in the other pairing."""
    parted = rows.view(heads, before + rope, -1).clone()
    turned = change(parted[:, before:].reshape(heads * rope, -1), heads)
    parted[:, before:] = turned.view(heads, rope, -1)
    return parted.view_as(rows)


def _parts_swapped(rows: torch.Tensor, heads: int, first: int) -> torch.Tensor:
    """The first `first` rows of each head behind its others."""
    parted = rows.view(heads, rows.shape[0] // heads, -1)
    return torch.cat([parted[:, first:], parted[:, :first]], dim=1).reshape_as(rows)


def _by_heads(rows: torch.Tensor, heads: int, first: int, keys_first: bool) -> torch.Tensor:
    """Two blocks of all heads, of which the first has `first` rows a head -> keys, then values of each head."""
    one, other = rows[: heads * first].view(heads, first, -1), rows[heads * first :].view(heads, -1, rows.shape[1])
    return torch.cat([one, other] if keys_first else [other, one], dim=1).reshape_as(rows)


def _input_scale_faults(found: dict[str, Measured], manifest: Manifest, moved: dict[str, str]) -> Iterator[Fault]:
    """Input scales that differ, but for those of tensors that moved with theirs. A layout with one for gate and up
    together holds the larger.
    """
    theirs = manifest.input_scales
    mine = {name: each.input_scale for name, each in found.items() if each.input_scale is not None}
    for name in theirs:
        wanted = theirs.get(moved.get(name, name), theirs[name])
        if name not in found or mine.get(name) in (wanted, theirs[name]):
            continue
        other = name.replace(".w1.", ".w3.") if ".w1." in name else name.replace(".w3.", ".w1.")
        pairs = [(scales.get(name), scales.get(other)) for scales in (mine, theirs)]
        if name not in mine and manifest.tensors[name].parts.keys() == found[name].parts.keys():
            yield Fault("input scale", name, f"has no input scale, the manifest says {wanted:g}")
        elif name in mine and not _larger_shared(pairs):
            yield Fault("input scale", name, f"its input scale is {mine[name]:g}, the manifest says {wanted:g}")


def _larger_shared(pairs: list[tuple[float | None, float | None]]) -> bool:
    """Whether one side has one scale for gate and up, and it is the larger of the other side's two."""
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    return len(known) == 2 and any(one == other for one, other in known) and max(known[0]) == max(known[1])
