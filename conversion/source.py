"""Opens a checkpoint folder of any layout: finds out which it is, reads its configuration and headers, and checks every name,
shape and dtype against the table before any body is read. The result answers, leaf by leaf, where the values lie.

Never opens a pickle. Knows where values lie; what is done with them is decided elsewhere.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_small4.configuration_small4 import Small4Config

from . import raw, transformers_layout
from .checkpoint import CheckpointError, Stored, read_headers, read_json
from .files import INDEX, PATTERN, RAW_INDEX, RAW_PATTERN, no_weights, weight_files
from .naming import Leaf, from_transformers, fused_shape, leaves, scale_names
from .transforms import NVFP4_BLOCK

PLAIN = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Values:
    """Where the values of one leaf lie, and what turns the stored codes into numbers."""

    body: Stored
    scale: Stored | None = None  # FP8: value = code * scale
    activation: Stored | None = None  # FP8: the static scale of the layer's input
    nvfp4: tuple[Stored, Stored] | None = None  # block scales and the global divisor of packed e2m1 pairs

    @property
    def quantized(self) -> bool:
        """Whether `body` holds codes rather than numbers."""
        return self.scale is not None or self.nvfp4 is not None


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint. `values` holds every leaf of `config` that is there; `problems` is empty unless asked for."""

    folder: Path
    layout: str  # "mistral", "transformers" or "small4"
    config: Small4Config
    config_file: Path
    params: dict[str, Any] | None  # the params.json it has, or once came with
    scale_note: str
    values: dict[str, Values]  # by the raw name of the leaf
    problems: list[tuple[str, str]] = field(default_factory=list)

    def precision(self) -> str:
        """How the weights are stored: "fp8", "nvfp4", or the dtype of plain numbers ("BF16", ...)."""
        kinds = {"nvfp4" if v.nvfp4 else "fp8" for v in self.values.values() if v.quantized}
        return "nvfp4" if "nvfp4" in kinds else kinds.pop() if kinds else self.plain_dtype()

    def plain_dtype(self) -> str:
        """The one dtype of everything that is not quantised."""
        return next((v.body.dtype for v in self.values.values() if not v.quantized), "BF16")


def open_checkpoint(folder: Path, rule: str | None = None, strict: bool = True) -> Checkpoint:
    """Open `folder`, in whichever layout it is. If it holds both released layouts, the raw one is taken: it is the lossless one.

    rule: how a transformers folder's softmax scale is read, "released" (default) or "transformers".
    strict: raise for tensors that are missing, extra or misshapen; otherwise collect them in `problems`.

    Raises:
        CheckpointError: No checkpoint, or a damaged one; the message names the file and the tensor.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    names = {entry.name for entry in folder.iterdir()}
    if "params.json" in names and any(
        re.fullmatch(r"consolidated.*\.safetensors(\.index\.json)?", name) for name in names
    ):
        return _open_raw(folder, rule, strict)
    if "config.json" in names:
        return _open_fused(folder, rule, strict)
    if "params.json" in names:
        raise no_weights(folder, names, RAW_PATTERN)
    if any(name.startswith("consolidated") for name in names):
        raise CheckpointError(f"{folder / 'params.json'}: missing beside the consolidated weights")
    raise CheckpointError(f"{folder}: no checkpoint, neither params.json nor config.json is in it")


def _open_raw(folder: Path, rule: str | None, strict: bool) -> Checkpoint:
    file = folder / "params.json"
    params = read_json(file)
    config = raw.config_from_params(params, file)
    says = config.text_config.softmax_scale_rule
    _refuse_contradiction(rule, says, file)
    headers = read_headers(weight_files(folder, RAW_INDEX, RAW_PATTERN))
    table = _Table(headers, strict, file)
    for leaf in leaves(config):
        table.take_raw(leaf)
    values = table.finish(_announced_raw(params, file))
    note = f"{says} (yarn.apply_scale is {str(says == 'transformers').lower()} in params.json)"
    return Checkpoint(folder, "mistral", config, file, params, note, values, table.problems)


def _open_fused(folder: Path, rule: str | None, strict: bool) -> Checkpoint:
    file = folder / "config.json"
    given = read_json(file)
    kind, files = given.get("model_type"), weight_files(folder, INDEX, PATTERN)
    found = read_headers(files)
    text_only = "text_config" not in given or given.get("vision_config", ...) is None
    headers = {from_transformers(name, text_only): stored for name, stored in found.items()}
    if len(headers) != len(found):
        raise CheckpointError(f"{folder}: one tensor is stored under two spellings of its name")
    if kind in transformers_layout.OUR_TYPES:
        layout, config = "small4", raw.build_config(given, file)
        note = f"{config.text_config.softmax_scale_rule} (softmax_scale_rule in config.json)"
        _refuse_contradiction(rule, config.text_config.softmax_scale_rule, file)
    elif kind in transformers_layout.MODEL_TYPES:
        layout, has_head = "transformers", "lm_head.weight" in headers
        config, note = transformers_layout.config_from_transformers(given, rule or "released", has_head, file)
    else:
        raise CheckpointError(f"{file}: model_type is {kind!r}; known are mistral3 with mistral4, mistral4 and small4")
    table = _Table(headers, strict, file)
    for leaf in leaves(config):
        table.take_fused(leaf, config.text_config.n_routed_experts)
    values = table.finish(transformers_layout.is_fp8(given.get("quantization_config"), file))
    params = read_json(folder / raw.KEPT) if (folder / raw.KEPT).exists() else None
    return Checkpoint(folder, layout, config, file, params, note, values, table.problems)


def _refuse_contradiction(rule: str | None, says: str, file: Path) -> None:
    if rule not in (None, says):
        raise CheckpointError(
            f"{file}: says the softmax scale rule is {says!r}; --softmax-scale {rule} is only for transformers folders"
        )


def _announced_raw(params: dict[str, Any], file: Path) -> bool | None:
    """Whether params.json announces FP8; None where it announces NVFP4."""
    entry = params.get("quantization")
    if entry is not None:
        fp8 = isinstance(entry, dict) and entry.get("qformat_weight") == "fp8_e4m3"
        if not fp8 or entry.get("qscheme_act", "NO_SCALES") not in ("TENSOR", "NO_SCALES"):
            raise CheckpointError(f"{file}: quantization is {entry!r}; known is fp8_e4m3 with TENSOR or NO_SCALES")
        return True
    return None if params.get("quantization_config") is not None else False


class _Table:
    """Headers on one side, the table of leaves on the other; each leaf takes what is its own, and nothing may be left."""

    def __init__(self, headers: dict[str, Stored], strict: bool, config_file: Path) -> None:
        self._headers = headers
        self._left = dict.fromkeys(headers)
        self._strict = strict
        self._config_file = config_file
        self._values: dict[str, Values] = {}
        self.problems: list[tuple[str, str]] = []

    def take_raw(self, leaf: Leaf) -> None:
        if leaf.raw not in self._headers and leaf.linear:
            packed = leaf.raw + "_packed"
            if packed in self._headers:
                self._take_nvfp4(leaf, packed)
                return
        body = self._find(leaf.raw, [leaf.shape])
        if body is None:
            return
        scale = activation = None
        if leaf.linear and body.dtype == "F8_E4M3":
            scale_name, activation_name = scale_names(leaf, raw=True)
            scale = self._find(scale_name, [(), (1,)], PLAIN)
            activation = self._find(activation_name, [(), (1,)], PLAIN, optional=True)
        self._store(leaf, body, scale, activation)

    def _take_nvfp4(self, leaf: Leaf, packed: str) -> None:
        out, inner = leaf.shape
        if inner % NVFP4_BLOCK:
            self._problem(
                packed, self._config_file, f"rows of {inner} do not divide into NVFP4 blocks of {NVFP4_BLOCK}"
            )
            return
        body = self._find(packed, [(out, inner // 2)], ("U8",))
        blocks = self._find(leaf.raw + "_scale", [(out, inner // NVFP4_BLOCK)], ("F8_E4M3",))
        divisor = self._find(leaf.raw + "_global_scale", [(), (1,)], ("F32",))
        stem = leaf.raw.removesuffix(".weight")
        self._find(stem + ".input_global_scale", [(), (1,)], ("F32",), optional=True)
        if body and blocks and divisor:
            self._values[leaf.raw] = Values(body, nvfp4=(blocks, divisor))

    def take_fused(self, leaf: Leaf, experts: int) -> None:
        body = self._find(leaf.name, [fused_shape(leaf, experts)])
        if body is None:
            return
        body = body.part(_offset(leaf, leaf.shape, body.count), leaf.shape)
        scale = activation = None
        if leaf.linear and body.dtype == "F8_E4M3":
            scale_name, activation_name = scale_names(leaf, raw=False)
            of_scale, of_activation = _scale_shapes(leaf, experts)
            scale = _scalar(self._find(scale_name, of_scale, PLAIN), leaf)
            activation = _scalar(self._find(activation_name, of_activation, PLAIN, optional=True), leaf)
        self._store(leaf, body, scale, activation)

    def _store(self, leaf: Leaf, body: Stored, scale: Stored | None, activation: Stored | None) -> None:
        if body.dtype == "F8_E4M3":
            if not leaf.linear:
                self._problem(body.tensor, body.file, "is F8_E4M3, but this tensor is never quantised")
                return
            if scale is None:
                return  # reported as missing already
        elif body.dtype not in PLAIN:
            self._problem(
                body.tensor, body.file, f"is {body.dtype}, but it must be one of {', '.join(PLAIN)} or FP8 with scales"
            )
            return
        self._values[leaf.raw] = Values(body, scale, activation)

    def finish(self, fp8: bool | None) -> dict[str, Values]:
        """Check what concerns the whole. fp8: whether the configuration announces FP8 (None: NVFP4)."""
        for name in self._left:
            stored = self._headers[name]
            self._problem(
                stored.tensor, stored.file, f"is not part of the model that {self._config_file.name} describes"
            )
        plain = next((v.body for v in self._values.values() if not v.quantized), None)
        for value in self._values.values():
            body = value.body
            if plain and not value.quantized and body.dtype != plain.dtype:
                self._problem(
                    body.tensor,
                    body.file,
                    f"is {body.dtype}, but {plain.tensor} is {plain.dtype}; one dtype is expected",
                )
        self._check_announced(fp8)
        self._check_activations()
        return self._values

    def _check_announced(self, fp8: bool | None) -> None:
        found = {"nvfp4" if v.nvfp4 else "fp8": v.body for v in self._values.values() if v.quantized}
        if fp8 is False and found:
            body = next(iter(found.values()))
            self._problem(
                body.tensor, body.file, f"is quantised, but {self._config_file.name} announces no quantization"
            )
        if fp8 and "fp8" not in found:
            raise CheckpointError(f"{self._config_file}: announces FP8, but no tensor is stored so")
        if fp8 is None and "nvfp4" not in found:
            raise CheckpointError(
                f"{self._config_file}: announces a quantization_config, but no tensor is stored as NVFP4"
            )

    def _check_activations(self) -> None:
        static = [v for v in self._values.values() if v.activation is not None]
        lacking = next((v.body for v in self._values.values() if v.scale is not None and v.activation is None), None)
        if static and lacking:
            self._problem(lacking.tensor, lacking.file, "has no activation scale, but other tensors have one")

    def _find(
        self, name: str, shapes: list[tuple[int, ...]], dtypes: tuple[str, ...] = (), optional: bool = False
    ) -> Stored | None:
        stored = self._headers.get(name)
        if stored is None:
            if not optional:
                self._problem(name, self._config_file, "is missing")
            return None
        self._left.pop(name, None)
        if stored.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            self._problem(stored.tensor, stored.file, f"has shape {list(stored.shape)}, expected {wanted}")
            return None
        if dtypes and stored.dtype not in dtypes:
            self._problem(stored.tensor, stored.file, f"is {stored.dtype}, expected {' or '.join(dtypes)}")
            return None
        return stored

    def _problem(self, tensor: str, file: Path, reason: str) -> None:
        if self._strict:
            raise CheckpointError(f"{file}: tensor {tensor} {reason}")
        if (tensor, reason) not in self.problems:
            self.problems.append((tensor, reason))


def _offset(leaf: Leaf, shape: tuple[int, ...], total: int) -> int:
    """Values of a fused tensor of `total` values before the slice of `leaf`."""
    if not leaf.index:
        return 0
    size = shape[0] * shape[1]
    expert, half = (*leaf.index, 0)[:2]
    return (expert * len(leaf.index) + half) * size


def _scale_shapes(leaf: Leaf, experts: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Shapes that the weight scale and the activation scale of a tensor in our layout may have."""
    if not leaf.index:
        return [(), (1,)], [(), (1,)]
    shared: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = ([(experts, 1, 1)], [(experts,)])
    if len(leaf.index) == 1:
        return shared
    return [(experts, 2, 1), *shared[0]], [(experts, 2), *shared[1]]


def _scalar(stored: Stored | None, leaf: Leaf) -> Stored | None:
    """The scale of one leaf out of a tensor of scales: one for each half, one for each expert, or a scalar."""
    if stored is None or not leaf.index:
        return stored
    expert, half = (*leaf.index, 0)[:2]
    split = len(leaf.index) == 2 and stored.count == stored.shape[0] * 2
    return stored.part(expert * 2 + half if split else expert, ())
