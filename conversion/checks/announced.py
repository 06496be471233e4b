"""What a configuration announces about quantized weights, held against their headers. Our readers go by the headers;
other engines go by the announcement.

Knows the words of compressed-tensors and MLX for sizes, and those of Mistral and transformers for scales of inputs.
"""

from collections.abc import Iterator
from typing import Any

from modeling_small4.files_reading import shown

from ..against import Fault
from ..formats.fp8 import Fp8
from ..formats.int4 import Int4, Packed
from ..formats.int8 import Int8
from ..formats.mlx import Affine
from ..formats.nvfp4 import GROUP, ModelOpt, Nvfp4
from ..formats.values import Values
from ..source import Checkpoint

_INPUTS = {
    "qscheme_act": {"TENSOR": True, "NO_SCALES": False},
    "activation_scheme": {"static": True, "dynamic": False},
}
_ARRANGEMENTS = {"tensor": "tensor", "row": "channel", "block": "block"}


def announced_faults(source: Checkpoint) -> list[Fault]:
    """What the configuration says of stored weights that they are not."""
    return [*_sizes(source), *_inputs(source)]


def _inputs(source: Checkpoint) -> Iterator[Fault]:
    """Static scales of the inputs of FP8 layers: announced and not stored, or the reverse."""
    weights = [value for value in source.values.values() if isinstance(value, Fp8)]
    stored = any(value.activation is not None for value in weights)
    for key, words in _INPUTS.items():
        said = source.announced.entry.get(key)
        static = words.get(said) if isinstance(said, str) else None
        if weights and static not in (None, stored):
            reason = f"is {shown(said)} in {source.config_file.name}, but scales of inputs are " + (
                "stored" if stored else "not stored"
            )
            yield Fault("quantization", key, reason)


def _sizes(source: Checkpoint) -> Iterator[Fault]:
    """Bits, groups and scales of weights. Where several groups of layers are announced, a weight has to fit one."""
    said = _announcements(source.announced.entry)
    wrong: dict[tuple[str, str, str], list[str]] = {}
    for name, value in source.values.items():
        for part in value.inner():
            differing = [_differing(each, part) for each in said]
            for key, (one, other) in min(differing, key=len, default={}).items():
                wrong.setdefault((key, shown(one), shown(other)), []).append(name)
    for (key, one, other), names in wrong.items():
        some = names[0] if len(names) == 1 else f"{len(names)} weights, such as {names[0]},"
        verb = "is" if len(names) == 1 else "are"
        reason = f"is {one} in {source.config_file.name}, but {some} {verb} stored with {other}"
        yield Fault("quantization", key, reason)


def _announcements(entry: dict[str, Any]) -> list[dict[str, Any]]:
    groups = entry.get("config_groups")
    if isinstance(groups, dict):
        weights = [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        return [each for each in weights if isinstance(each, dict)]
    if "bits" in entry and "quant_method" not in entry:  # MLX: for all layers, and for single ones
        return [entry, *(entry | each for each in entry.values() if isinstance(each, dict))]
    return []


def _differing(said: dict[str, Any], value: Values) -> dict[str, tuple[object, object]]:
    """By key, what is said and what is stored."""
    given, found = dict(said), _stored(value)
    if given.get("strategy") == "channel" or given.get("group_size") == -1:  # a row is one group
        given["group_size"] = -1
        found |= {"group_size": -1} if found.get("group_size") == value.shape[-1] else {}
    return {key: (given[key], found[key]) for key in found if given.get(key) not in (None, found[key])}


def _stored(value: Values) -> dict[str, object]:
    """A weight in the words of its announcement, as far as headers tell."""
    if isinstance(value, Int4 | Packed):
        groups, bits = value.scale.shape[1], value.bits if isinstance(value, Packed) else 4
        sizes = {"num_bits": bits, "group_size": value.shape[1] // groups}
        return {**sizes, "type": "int", "symmetric": value.zeros is None}
    if isinstance(value, Nvfp4 | ModelOpt):
        return {"num_bits": 4, "group_size": GROUP, "type": "float"}
    if isinstance(value, Fp8):
        return {"num_bits": 8, "type": "float", "strategy": _ARRANGEMENTS[value.arrangement]}
    if isinstance(value, Int8):
        return {"num_bits": 8, "type": "int", "strategy": "tensor" if value.scale.count == 1 else "channel"}
    if isinstance(value, Affine):
        return {"bits": value.bits, "group_size": value.shape[1] // value.scale.shape[1]}
    return {}
