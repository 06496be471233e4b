"""Checkpoints that hold one tensor for each expert, as quantizers write them, seen with our names and shapes.

Headers only; a tensor is read when it is indexed, an expert at a time, into its place in the fused tensor. Must not
know: modules, what a scale means.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from safetensors import safe_open

DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
# One expert's tensors: their projection, and in which half of which fused tensor it stands.
_EXPERT = re.compile(r"^(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.(.+)$")
_HOMES = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", 0)}
# compressed-tensors' words for the scales of FP8, and ours
_FP8_SCALES = {"weight_scale": "weight_scale_inv", "input_scale": "activation_scale"}

# Scales of keys and values for engines that hold these in 8 bits. Our cache holds latents, to which they do not apply.
CACHE_SCALE = re.compile(r"\.self_attn\.(?:(?:[qkv]|kv)_(?:scale|zero_point)|[kv]_proj\.output_scale)$")


class Tensor(Protocol):
    """A tensor in a file: what safetensors calls a slice."""

    def get_shape(self) -> Sequence[int]: ...

    def get_dtype(self) -> str: ...

    def __getitem__(self, index: Any) -> torch.Tensor: ...


class Fused:
    """The matrices of all experts as one tensor: `pieces[expert][half]`, one below the other."""

    def __init__(self, pieces: Sequence[Sequence[Tensor]], shape: Sequence[int]) -> None:
        self._pieces, self._shape = pieces, list(shape)

    def get_shape(self) -> list[int]:
        """As of a slice of safetensors."""
        return self._shape

    def get_dtype(self) -> str:
        """As of a slice of safetensors."""
        return self._pieces[0][0].get_dtype()

    def __getitem__(self, index: Any) -> torch.Tensor:
        cut = isinstance(index, tuple) and len(index) > 0 and isinstance(index[0], slice)
        wanted = self._pieces[index[0]] if cut else self._pieces  # a process with some of the experts reads no others
        out = torch.empty(len(wanted), *self._shape[1:], dtype=DTYPES[self.get_dtype()])
        places = out.view(len(wanted), len(self._pieces[0]), -1)
        for expert, matrices in enumerate(wanted):
            for half, matrix in enumerate(matrices):
                places[expert, half] = matrix[...].flatten()
        return out[(slice(None), *index[1:]) if cut else index]


def tensors_of(files: Sequence[str]) -> tuple[dict[str, Tensor], bool, list[str]]:
    """Every tensor of safetensors files by its name, with experts fused and scales of FP8 named as ours.

    Returns:
        The tensors, whether any of them is not in the files by that name, and the names of those left out:
        `CACHE_SCALE`.

    Raises:
        ValueError: A tensor is in two files, or one of an expert is missing or unlike those of the other experts.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        opened = safe_open(file, framework="pt", backend="pread")
        for name in opened.keys():  # noqa: SIM118
            if name in found:
                raise ValueError(f"{name} is in two files of the checkpoint, {file} and another one.")
            found[name] = opened.get_slice(name)
            if found[name].get_dtype() not in DTYPES:
                raise ValueError(f"{name} is {found[name].get_dtype()}, a dtype that no format read here has.")
    left_out = sorted(filter(CACHE_SCALE.search, found))
    fused = _fused(_named(found))
    return fused, fused.keys() != found.keys(), left_out


def _named(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """With our names for the scales of FP8, without the shapes that compressed-tensors writes beside packed integers,
    and without scales of caches.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in found.items():
        module, _, end = name.rpartition(".")
        if CACHE_SCALE.search(name):
            continue
        if end in _FP8_SCALES and _dtype(found, f"{module}.weight") == "F8_E4M3":
            name = f"{module}.{_FP8_SCALES[end]}"
            if name in found:
                raise ValueError(f"{module} has both {end} and {_FP8_SCALES[end]}; one of them must go.")
        if end == "weight_shape" and _dtype(found, f"{module}.weight_packed") == "I32":
            _check_shape(name, tensor, found[f"{module}.weight_packed"])
            continue
        out[name] = tensor
    return out


def _dtype(found: dict[str, Tensor], name: str) -> str | None:
    return found[name].get_dtype() if name in found else None


def _check_shape(name: str, tensor: Tensor, packed: Tensor) -> None:
    said, shape = tensor[...].flatten().tolist(), list(packed.get_shape())
    if len(said) != 2 or len(shape) != 2 or said[0] != shape[0] or -(-said[1] // 8) != shape[1]:
        raise ValueError(
            f"{name} says {said}, but its codes are {shape}, eight in a word. from_pretrained holds codes of 4 bits "
            "only; small4 convert SRC DST expands other widths."
        )


def _fused(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the tensors of a layer's experts put together."""
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    for name, tensor in named.items():
        if match := _EXPERT.match(name):
            experts, expert, projection, end = match.groups()
            stem, half = _HOMES[projection]
            end = end.removeprefix("weight") if end.startswith("weight") else f"_{end}"
            parts[f"{experts}.{stem}{end}"][int(expert), half] = name
        else:
            out[name] = tensor
    for name, places in parts.items():
        if name in out:
            raise ValueError(f"{name} is in the checkpoint twice: for all experts together, and for each.")
        halves = 2 if ".gate_up_proj" in name else 1
        count = 1 + max(expert for expert, _ in places)
        _check_complete(name, places, count, halves)
        names = [[places[expert, half] for half in range(halves)] for expert in range(count)]
        _check_alike([each for pair in names for each in pair], named)
        pieces = [[named[each] for each in pair] for pair in names]
        out[name] = Fused(pieces, _shape(name, pieces[0][0].get_shape(), count, halves))
    return out


def _check_complete(name: str, places: dict[tuple[int, int], str], count: int, halves: int) -> None:
    projections = ("gate_proj", "up_proj") if halves == 2 else ("down_proj",)
    for expert in range(count):
        for half in range(halves):
            if (expert, half) not in places:
                experts, _, end = name.rpartition(f".{'gate_up_proj' if halves == 2 else 'down_proj'}")
                raise ValueError(
                    f"{experts}.{expert}.{projections[half]} has no {_spelled(end)}, but other experts of the layer "
                    "have. Weights of one layer's experts are held together if all are stored alike; if the file is "
                    "complete, small4 convert SRC DST --dtype bfloat16 expands them."
                )


def _spelled(end: str) -> str:
    """The ending of a fused tensor's name as single experts have it."""
    beside = end.endswith(("activation_scale", "input_scale", "input_global_scale"))
    return end.removeprefix("_") if beside else f"weight{end}".replace("_scale_inv", "_scale or weight_scale_inv")


def _check_alike(names: Sequence[str], named: dict[str, Tensor]) -> None:
    def kind(name: str) -> tuple[str, list[int]]:
        shape = list(named[name].get_shape())
        return named[name].get_dtype(), [] if shape == [1] else shape

    first = kind(names[0])
    for name in names:
        if kind(name) != first:
            raise ValueError(
                f"{name} is {kind(name)[0]} {kind(name)[1]}, but {names[0]} is {first[0]} {first[1]}. Weights of one "
                "layer's experts are held together if all are stored alike; small4 convert SRC DST --dtype bfloat16 "
                "expands them."
            )


def _shape(name: str, one: Sequence[int], count: int, halves: int) -> tuple[int, ...]:
    """Of a fused tensor whose pieces have the shape `one`."""
    if len(one) >= 2:
        return (count, halves * one[0], *one[1:])
    if name.endswith("_scale_inv") and list(one) in ([], [1]):
        return (count, halves, 1)
    if list(one) in ([], [1]):
        return (count,) if halves == 1 and name.endswith("activation_scale") else (count, halves)
    return (count, halves * one[0])
