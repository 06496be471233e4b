"""What a configuration says about quantization: which formats it announces. What it says and what is stored must agree.

Knows the entries `quantization` and `quantization_config` of params.json and config.json; no tensors.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_small4.files_reading import shown

from ..checkpoint import CheckpointError
from .table import refusal
from .values import BLOCK

# compressed-tensors: its word for a format -> ours. "mixed-precision" announces what its groups do.
_COMPRESSED = {
    "float-quantized": ("fp8",),
    "naive-quantized": ("fp8", "int8"),
    "int-quantized": ("int8",),
    "nvfp4-pack-quantized": ("nvfp4",),
    "pack-quantized": ("int4",),
}
HELD = ("fp8", "nvfp4", "int4")
_WORDS = {
    "fp8": "FP8",
    "nvfp4": "NVFP4",
    "int4": "4-bit groups",
    "int8": "8-bit integers",
    "gptq": "GPTQ",
    "awq": "AWQ",
}


@dataclass(frozen=True)
class Announced:
    """The formats that a configuration announces; none where it announces no quantization.

    entry: what it says, word for word. arrangements: those of FP8 scales that fit it (see `Fp8.arrangement`).
    """

    forms: frozenset[str] = frozenset()
    entry: dict[str, Any] = field(default_factory=dict)
    arrangements: frozenset[str] = frozenset(("tensor", "row", "block"))

    @property
    def words(self) -> str:
        """The formats for people, and the word of the configuration."""
        method = self.entry.get("quant_method")
        return " or ".join(_WORDS.get(form, form) for form in sorted(self.forms)) + (f" ({method})" if method else "")

    @property
    def blocks(self) -> bool:
        """Whether FP8 scales are those of blocks."""
        return self.arrangements == {"block"}

    @property
    def widths(self) -> set[int]:
        """MLX: the bits of a code, for all layers and for single ones."""
        inner = [value for value in self.entry.values() if isinstance(value, dict)]
        return {part["bits"] for part in (self.entry, *inner) if type(part.get("bits")) is int}

    @property
    def asymmetric(self) -> bool:
        """Whether every group of integers has zeros of its own (compressed-tensors)."""
        integers = self._integers()
        return bool(integers) and all(w.get("symmetric") is False for w in integers)

    @property
    def reordered(self) -> bool:
        """Whether columns belong to groups in an order that is stored (compressed-tensors)."""
        integers = self._integers()
        return bool(integers) and all(w.get("actorder") == "group" for w in integers)

    def _integers(self) -> list[dict[str, Any]]:
        groups = self.entry.get("config_groups")
        inner = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
        return [w for w in inner if isinstance(w, dict) and w.get("type") == "int"]

    def says(self) -> str:
        """The entry's word on FP8 scales."""
        size = self.entry.get("weight_block_size")
        return "one for each tensor" if "quant_method" not in self.entry else f"weight_block_size {shown(size)}"


def announced(content: dict[str, Any], file: Path) -> Announced:
    """What params.json or config.json announces.

    Raises:
        CheckpointError: A format that is not read; the message names it and the nearest one that is.
    """
    entry = content.get("quantization")
    if isinstance(entry, dict) and "bits" in entry and "group_size" in entry:
        return _mlx(entry, file)
    if isinstance(entry, dict) and str(entry.get("quant_method")).replace("_", "-") == "compressed-tensors":
        return Announced(_compressed(entry, file), entry)  # some releases say so under this key
    if entry is not None:
        return _mistral(entry, file)
    entry = content.get("quantization_config")
    if entry is None:
        return Announced()
    if not isinstance(entry, dict):
        raise CheckpointError(f"{file}: quantization_config is {shown(entry)}, it must be an object")
    method = str(entry.get("quant_method", "compressed-tensors")).replace("compressed_tensors", "compressed-tensors")
    if method == "fp8":
        return _fine_grained(entry, file)
    if method == "compressed-tensors":
        return Announced(_compressed(entry, file), entry)
    if method in ("gptq", "awq"):
        return _packed(entry, method, file)
    if method == "bitsandbytes":
        return Announced(frozenset({"bitsandbytes", "int8"}), entry)
    if method == "modelopt":
        return _modelopt(entry, file)
    raise CheckpointError(f"{file}: quantization_config says {shown(method)}: {refusal(method)}")


def _mistral(entry: Any, file: Path) -> Announced:
    fp8 = isinstance(entry, dict) and entry.get("qformat_weight") == "fp8_e4m3"
    if not fp8 or entry.get("qscheme_act", "NO_SCALES") not in ("TENSOR", "NO_SCALES"):
        raise CheckpointError(f"{file}: quantization is {shown(entry)}; known is fp8_e4m3 with TENSOR or NO_SCALES")
    return Announced(frozenset({"fp8"}), entry, frozenset({"tensor"}))


def _modelopt(entry: dict[str, Any], file: Path) -> Announced:
    """NVIDIA's ModelOpt: FP8 and NVFP4, by the algorithm."""
    algorithm = str(entry.get("quant_algo", "")).upper()
    forms = {"FP8": {"fp8"}, "NVFP4": {"modelopt"}, "MIXED_PRECISION": {"fp8", "modelopt"}}.get(algorithm)
    if forms is None:
        raise CheckpointError(
            f"{file}: ModelOpt with quant_algo {shown(algorithm)} is not read; read are FP8 and NVFP4"
        )
    return Announced(frozenset(forms), entry)


def _mlx(entry: dict[str, Any], file: Path) -> Announced:
    """MLX: bits and groups for all, and for single layers by their names."""
    inner = [value for value in entry.values() if isinstance(value, dict)]
    for mode in [part.get("mode", "affine") for part in (entry, *inner)]:
        if mode != "affine":
            raise CheckpointError(
                f"{file}: MLX in the mode {shown(mode)} is not read; convert it with mlx_lm in the mode 'affine'"
            )
    return Announced(frozenset({"mlx"}), entry)


def _fine_grained(entry: dict[str, Any], file: Path) -> Announced:
    """transformers' `fp8`: scales for tensors or rows, or for blocks where `weight_block_size` says so."""
    block = entry.get("weight_block_size")
    if block is None:
        return Announced(frozenset({"fp8"}), entry, frozenset({"tensor", "row"}))
    if block != [BLOCK, BLOCK]:
        raise CheckpointError(
            f"{file}: FP8 with weight_block_size {shown(block)}; only blocks of [{BLOCK}, {BLOCK}] are read"
        )
    return Announced(frozenset({"fp8"}), entry, frozenset({"block"}))


def _packed(entry: dict[str, Any], method: str, file: Path) -> Announced:
    """GPTQ and AWQ in the packing that they are shared in."""
    key = next((k for k in ("checkpoint_format", "version", "format") if entry.get(k)), "format")
    packing = str(entry.get(key, "")).lower()
    if packing not in {"gptq": ("", "gptq", "gptq_v2"), "awq": ("", "gemm")}[method]:
        raise CheckpointError(
            f"{file}: {method.upper()} with {key} {shown(packing)} is not read; save it as "
            f"{'gptq' if method == 'gptq' else 'gemm'}"
        )
    if method == "awq" and entry.get("bits", 4) != 4:
        raise CheckpointError(f"{file}: AWQ of {shown(entry['bits'])} bits is not read; only 4 bits are")
    return Announced(frozenset({method}), entry)


def _compressed(entry: dict[str, Any], file: Path) -> frozenset[str]:
    if entry.get("transform_config"):
        raise CheckpointError(
            f"{file}: quantization_config has a transform_config: inputs would have to be rotated as the weights are, "
            "which is not read; quantize the model without transforms"
        )
    groups = entry.get("config_groups") or {}
    inner = (
        [group.get("format") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    words = {str(word) for word in (entry.get("format"), *inner) if word not in (None, "mixed-precision")}
    for word in words:
        if word not in _COMPRESSED:
            raise CheckpointError(
                f"{file}: compressed-tensors format {shown(word)} is not read; read are {', '.join(_COMPRESSED)}"
            )
    return frozenset(form for word in words for form in _COMPRESSED[word]) or frozenset(HELD)
