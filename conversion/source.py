"""Opens a checkpoint folder of any layout: detects the layout, reads configuration and headers, and checks every name,
shape and dtype against the table before any tensor data are read. The result says where the values of each leaf are.

Never opens a pickle. Knows where values are, not what is done with them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from modeling_small4.configuration_small4 import Small4Config
from modeling_small4.files_reading import shown

from . import gguf_file, raw, transformers_layout
from .checkpoint import MISSING, CheckpointError, Stored, read_headers, read_json
from .files import INDEX, PATTERN, RAW_INDEX, RAW_PATTERN, no_weights, weight_files
from .formats import ggml, mlx, reading
from .formats.announced import Announced, announced
from .formats.finder import Finder
from .formats.values import Values
from .naming import TOWER, from_transformers, leaves, place_fused, place_raw, place_unfused

DRAFT = "draft of another model"  # a kind of `CheckpointError`
RAW, FUSED = ("params.json", RAW_PATTERN), ("config.json", PATTERN)  # the files that make up a layout


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint. `values` holds every leaf of `config` that was found; `problems` is empty unless they are
    collected.
    """

    folder: Path
    layout: str  # "mistral", "transformers", "small4" or "gguf"
    config: Small4Config
    config_file: Path
    params: dict[str, Any] | None  # its params.json, or the original one
    scale_note: str
    values: dict[str, Values]  # by the raw name of the leaf
    announced: Announced
    problems: list[tuple[str, str]] = field(default_factory=list)
    remarks: tuple[str, ...] = ()  # notes for the user about how it was read

    def precision(self) -> str:
        """How the weights are stored: "fp8", "nvfp4", "int4", several joined by "+", or the dtype of plain numbers
        ("BF16", ...).
        """
        kinds = sorted({part.form for v in self.values.values() for part in v.inner() if part.quantized})
        return "+".join(kinds) or self.plain_dtype()

    def plain_dtype(self) -> str:
        """The dtype of everything that is not quantized; for GGUF, whose small tensors are F32, that of the others."""
        parts = [part for value in self.values.values() for part in value.inner()]
        found = {part.body.dtype for part in parts if not part.quantized}
        if self.layout == "gguf" and (len(found) > 1 or any(part.quantized for part in parts)):
            found.discard("F32")
        return min(found, default="BF16")

    @property
    def interleaved(self) -> bool:
        """Whether the rows of vision's queries and keys are rotary pairs, rather than two halves."""
        return self.layout in ("mistral", "gguf")

    def scalar_shape(self) -> tuple[int, ...]:
        """The shape of a single scale in this checkpoint, [] or [1], as it is where tensors are not fused."""
        own = (v for leaf in leaves(self.config) if not leaf.index and (v := self.values.get(leaf.raw)))
        parts = (p.shape for v in own if (h := v.held()) for p in h.parts().values() if p.shape in ((), (1,)))
        return next(parts, ())


def open_checkpoint(folder: Path, rule: str | None = None, strict: bool = True, as_loaded: bool = False) -> Checkpoint:
    """Open `folder`, whatever its layout. If it holds both released layouts, one of them is read, which `remarks` says:
    the raw one, because it is lossless.

    rule: how a transformers folder's softmax scale is read, "released" (default) or "transformers".
    strict: raise for tensors that are missing, extra or misshapen; otherwise collect them in `problems`.
    as_loaded: of both layouts, read the one that `from_pretrained` loads.

    Raises:
        CheckpointError: No checkpoint, or a damaged one; the message names the file and the tensor.
    """
    if folder.is_file():
        return _open_gguf(gguf_file.files_of(folder), rule, strict)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    names = {entry.name for entry in folder.iterdir()}
    released, fused = (_holds(names, *layout) for layout in (RAW, FUSED))
    if released and fused:
        read, other = (FUSED, RAW) if as_loaded else (RAW, FUSED)
        source = (_open_fused if as_loaded else _open_raw)(folder, rule, strict)
        remark = f"two sets of weights are in the folder: that of {read[0]} ({read[1]}) is read, that of {other[0]} "
        return replace(source, remarks=(*source.remarks, f"{remark}({other[1]}) is not"))
    if released:
        return _open_raw(folder, rule, strict)
    if "config.json" in names:
        return _open_fused(folder, rule, strict)
    if "params.json" in names:
        raise no_weights(folder, names, RAW_PATTERN)
    if any(name.startswith("consolidated") for name in names):
        raise CheckpointError(f"{folder / 'params.json'}: missing beside the consolidated weights", MISSING)
    if files := gguf_file.files_of(folder):
        return _open_gguf(files, rule, strict)
    raise CheckpointError(f"{folder}: no checkpoint, neither params.json nor config.json is in it", MISSING)


def _holds(names: Iterable[str], config: str, pattern: str) -> bool:
    """Whether a folder with files of these names holds the weights of a layout."""
    return config in names and any(fnmatchcase(name, f) for name in names for f in (pattern, f"{pattern}.index.json"))


def _open_raw(folder: Path, rule: str | None, strict: bool) -> Checkpoint:
    file = folder / "params.json"
    params = read_json(file)
    headers = read_headers(weight_files(folder, RAW_INDEX, RAW_PATTERN))
    _refuse_draft(folder, headers)
    config = raw.config_from_params(params, file)
    says = config.text_config.softmax_scale_rule
    _refuse_contradiction(rule, says, file)
    said = announced(params, file)
    finder = Finder(headers, strict, file, "mistral", said)
    values = _read(finder, config)
    note = f"{says} (yarn.apply_scale is {str(says == 'transformers').lower()} in params.json)"
    return Checkpoint(folder, "mistral", config, file, params, note, values, said, finder.problems)


def _open_fused(folder: Path, rule: str | None, strict: bool) -> Checkpoint:
    file = folder / "config.json"
    given = read_json(file)
    if (
        given.get("dflash_config")
        or given.get("speculators_model_type")
        or "muse_glimmer" in str(given.get("model_type"))
    ):
        raise CheckpointError(
            f"{folder}: is a DFlash draft or another one, which drafts tokens for another model; use it as it is, "
            "without converting it",
            DRAFT,
        )
    named = given.get("transformers_weights")
    if named not in (None, "model.safetensors", INDEX):
        raise CheckpointError(
            f"{file}: transformers_weights is {shown(named)}, which from_pretrained loads in place of {PATTERN}; give "
            "these weights a folder of their own, without this key"
        )
    kind, files = given.get("model_type"), weight_files(folder, INDEX, PATTERN)
    found = read_headers(files)
    text_only = "text_config" not in given or given.get("vision_config", ...) is None
    headers = {from_transformers(name, text_only): stored for name, stored in found.items()}
    if len(headers) != len(found):
        raise CheckpointError(f"{folder}: one tensor is stored under two spellings of its name")
    _refuse_draft(folder, headers)
    if kind in transformers_layout.OUR_TYPES:
        layout, config = "small4", raw.build_config(given, file)
        note = f"{config.text_config.softmax_scale_rule} (softmax_scale_rule in config.json)"
        _refuse_contradiction(rule, config.text_config.softmax_scale_rule, file)
    elif kind in transformers_layout.MODEL_TYPES:
        layout, has_head = "transformers", "lm_head.weight" in headers
        config, note = transformers_layout.config_from_transformers(given, rule or "released", has_head, file)
    else:
        raise CheckpointError(
            f"{file}: model_type is {shown(kind)}; known are mistral3 with mistral4, mistral4 and small4"
        )
    remarks = _leave_out_vision(config, headers)
    said = announced(given, file)
    finder = Finder(headers, strict, file, layout, said)
    values = _read(finder, config)
    if left_out := finder.cache_scales():
        remarks += (
            f"scales of keys and values in 8 bits are left out, the cache holds latents: {', '.join(left_out)}",
        )
    if (folder / "adapter_config.json").exists():
        remarks += ("adapter_config.json: from_pretrained adds this adapter to the weights; it is not read here",)
    params = read_json(folder / raw.KEPT) if (folder / raw.KEPT).exists() else None
    return Checkpoint(folder, layout, config, file, params, note, values, said, finder.problems, remarks)


def _open_gguf(files: list[Path], rule: str | None, strict: bool) -> Checkpoint:
    content = gguf_file.read(files, rule)
    config, said = content.config, Announced(frozenset({"gguf"}))
    finder = Finder(content.headers, strict, files[0], "gguf", said)
    values = {}
    for leaf in leaves(config):
        found = ggml.take(finder, content.types, leaf, config.text_config)
        if found is not None:
            values[leaf.raw] = found
    finder.finish()
    place = files[0].parent
    return Checkpoint(
        place, "gguf", config, files[0], None, content.scale_note, values, said, finder.problems, content.remarks
    )


def _refuse_draft(folder: Path, headers: dict[str, Stored]) -> None:
    if any(name.endswith("eagle_linear.weight") for name in headers):
        raise CheckpointError(
            f"{folder}: is an EAGLE draft (eagle_linear.weight), which drafts tokens for another model; "
            "use it as it is, without converting it",
            DRAFT,
        )


def _leave_out_vision(config: Small4Config, headers: dict[str, Stored]) -> tuple[str, ...]:
    """mlx-lm keeps the configuration of the vision tower and drops its tensors: what is left is a text model."""
    if config.vision_config is None or not mlx.written_by_mlx(headers) or any(n.startswith(TOWER) for n in headers):
        return ()
    config.vision_config = None
    return ("vision: mlx-lm has left it out, so the result reads text only",)


def _read(finder: Finder, config: Small4Config) -> dict[str, Values]:
    """Every leaf that was found, by its raw name."""
    experts = config.text_config.n_routed_experts
    raw_names, mlx_names = finder.layout == "mistral", mlx.written_by_mlx(finder.headers)
    apart = not raw_names and any(re.search(r"\.mlp\.experts\.\d+\.", name) for name in finder.headers)
    values: dict[str, Values] = {}
    for leaf in leaves(config):
        place = place_raw(leaf) if raw_names else place_fused(leaf, experts)
        if apart and not reading.stands(finder, place):  # one tensor for each expert, as quantizers write them
            place = place_unfused(leaf)
        found = mlx.take(finder, leaf, config.text_config) if mlx_names else reading.take(finder, leaf, place)
        if found is not None:
            values[leaf.raw] = found
    if config.tie_word_embeddings:
        _refuse_tied_head(finder)
    reading.check(finder, values)
    return values


def _refuse_tied_head(finder: Finder) -> None:
    head, key = ("output.", "tied_embeddings") if finder.layout == "mistral" else ("lm_head.", "tie_word_embeddings")
    for name, stored in finder.headers.items():
        if name.startswith(head):
            finder.leave(name)
            reason = f"is not part of the model that {finder.config_file.name} describes: {key} is true there"
            finder.problem(stored.tensor, stored.file, reason)


def _refuse_contradiction(rule: str | None, says: str, file: Path) -> None:
    if rule not in (None, says):
        raise CheckpointError(
            f"{file}: says the softmax scale rule is '{says}'; --softmax-scale {rule} is only for transformers folders"
        )
