"""Reads a GGUF file, with the one for vision beside it, as a checkpoint: metadata become our configuration, tensors
become headers.

Reading needs the package `gguf` (extra `gguf`). Knows llama.cpp's keys; how its types are expanded is in
`formats/ggml.py`.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from modeling_small4.configuration_small4 import Small4Config
from modeling_small4.files_reading import POINTED, is_pointer, one_line, shown

from .checkpoint import MISSING, POINTER, TRUNCATED, CheckpointError, Stored, wrong_tensor
from .formats import ggml
from .raw import build_config

_PLAIN = {0: "F32", 1: "F16", 30: "BF16"}  # llama.cpp's numbers of types
_ARCHITECTURES = ("mistral4", "deepseek2")
# (key after the architecture, field of our text configuration)
_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.value_length_mla": "v_head_dim",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "context_length": "max_position_embeddings",
    "rope.dimension_count": "qk_rope_head_dim",
}
_OPTIONAL = {
    "attention.q_lora_rank": ("q_lora_rank", None),
    "expert_weights_scale": ("routed_scaling_factor", 1.0),
    "expert_group_count": ("n_group", 1),
    "expert_group_used_count": ("topk_group", 1),
}
_ROPE = {
    "rope.freq_base": "rope_theta",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_VISION = {
    "clip.vision.embedding_length": "hidden_size",
    "clip.vision.block_count": "num_hidden_layers",
    "clip.vision.attention.head_count": "num_attention_heads",
    "clip.vision.feed_forward_length": "intermediate_size",
    "clip.vision.patch_size": "patch_size",
    "clip.vision.image_size": "image_size",
}


class Content(NamedTuple):
    """A checkpoint as read. types: llama.cpp's number of the type of each tensor."""

    config: Small4Config
    headers: dict[str, Stored]
    types: dict[str, int]
    scale_note: str
    remarks: tuple[str, ...]


def files_of(source: Path) -> list[Path]:
    """The files of a GGUF checkpoint: all parts of the text model, then the one for vision. Empty if `source` is not
    one.

    Raises:
        CheckpointError: A folder with several models; one has to be named.
    """
    if source.is_file():
        if source.suffix != ".gguf":
            raise CheckpointError(f"{source}: is a file; name a checkpoint folder or a GGUF file")
        first, beside = source, sorted(source.parent.glob("*.gguf"))
    else:
        beside = sorted(source.glob("*.gguf"))
        models = [
            file
            for file in beside
            if not _for_vision(file) and not re.search(r"-0000[2-9]-of-|-000[1-9]\d-of-", file.name)
        ]
        if len(models) > 1:
            raise CheckpointError(
                f"{source}: holds several GGUF files ({', '.join(f.name for f in models[:4])}); name one of them"
            )
        if not models:
            return []
        first = models[0]
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", first.name)
    parts = [first]
    if match:
        parts = [first.with_name(f"{match[1]}-{i:05d}-of-{match[3]}.gguf") for i in range(1, int(match[3]) + 1)]
    vision = [file for file in beside if _for_vision(file) and file not in parts]
    if len(vision) > 1:
        raise CheckpointError(
            f"{source}: several files for vision are beside it ({', '.join(f.name for f in vision[:4])}); leave one"
        )
    return parts + vision


def _for_vision(file: Path) -> bool:
    return "mmproj" in file.name.lower()


def read(files: list[Path], rule: str | None) -> Content:
    """Read headers and metadata.

    rule: how the softmax scale is meant, "released" (default) or "transformers".

    Raises:
        CheckpointError: A file is missing or damaged, of another model, or the package `gguf` is not installed.
    """
    facts: dict[str, Any] = {}
    headers: dict[str, Stored] = {}
    types: dict[str, int] = {}
    for file in files:
        reader = _open(file)
        facts = {
            **{name: field.contents() for name, field in reader.fields.items() if "tokenizer." not in name},
            **facts,
        }
        for tensor in reader.tensors:
            if tensor.name in headers:
                raise wrong_tensor(file, tensor.name, f"is also in {headers[tensor.name].file.name}")
            headers[tensor.name] = _stored(file, tensor)
            types[tensor.name] = int(tensor.tensor_type)
    config, remarks = _config(facts, headers, rule or "released", files[0])
    keys = f"{facts.get('general.architecture')}.rope.scaling.yarn_log_multiplier"
    note = f"{rule or 'released'} (GGUF cannot say which is meant; {keys} is {shown(facts.get(keys))})"
    return Content(config, headers, types, note, remarks)


def _open(file: Path) -> Any:
    library = ggml.library_of_gguf()
    if not file.is_file():
        raise CheckpointError(f"{file}: missing", MISSING)
    try:
        return library.GGUFReader(file)
    except Exception as error:  # the package raises many kinds of errors
        about = POINTED if is_pointer(file) else f"is no GGUF file that can be read ({one_line(error, 200)})"
        raise CheckpointError(f"{file}: {about}", POINTER if about == POINTED else "damaged file") from None


def _stored(file: Path, tensor: Any) -> Stored:
    """Where a tensor lies: numbers in their dtype, or rows of bytes."""
    shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
    dtype = _PLAIN.get(int(tensor.tensor_type))
    if dtype is None:
        dtype, shape = "U8", (*shape[:-1], int(tensor.n_bytes) // max(1, math.prod(shape[:-1])))
    stored = Stored(file, tensor.name, dtype, shape, int(tensor.data_offset))
    if stored.start + stored.nbytes > file.stat().st_size or stored.nbytes != int(tensor.n_bytes):
        raise wrong_tensor(file, tensor.name, "is truncated: it ends behind the file", TRUNCATED)
    return stored


def _config(
    facts: dict[str, Any], headers: dict[str, Stored], rule: str, file: Path
) -> tuple[Small4Config, tuple[str, ...]]:
    arch = facts.get("general.architecture")
    if arch not in _ARCHITECTURES:
        raise CheckpointError(
            f"{file}: general.architecture is {shown(arch)}; Mistral Small 4 is {' or '.join(_ARCHITECTURES)}"
        )
    remarks = []
    beta = facts.get(f"{arch}.attention.temperature_scale")
    if beta is None and arch == "deepseek2":
        raise CheckpointError(
            f"{file}: is a deepseek2 model without attention.temperature_scale, so no Mistral Small 4"
        )
    if beta is None:
        beta = 0.1
        remarks.append(
            "query scale of long positions: not in this GGUF file, taken as released (llama_4_scaling_beta 0.1)"
        )
    text: dict[str, Any] = {field: _fact(facts, f"{arch}.{key}", file) for key, field in _SIZES.items()}
    text |= {field: facts.get(f"{arch}.{key}", default) for key, (field, default) in _OPTIONAL.items()}
    text["num_key_value_heads"] = text["num_attention_heads"]
    text["qk_nope_head_dim"] = _fact(facts, f"{arch}.attention.key_length_mla", file) - text["qk_rope_head_dim"]
    text["vocab_size"] = headers["token_embd.weight"].shape[0] if "token_embd.weight" in headers else 0
    text["norm_topk_prob"] = bool(facts.get(f"{arch}.expert_weights_norm", True))
    rope = {
        field: facts.get(f"{arch}.{key}", {"beta_fast": 32.0, "beta_slow": 1.0}.get(field))
        for key, field in _ROPE.items()
    }
    text["rope_parameters"] = {"rope_type": "yarn", **rope, "llama_4_scaling_beta": beta}
    text = {key: _rounded(value) for key, value in text.items()}
    text["rope_parameters"] = {key: _rounded(value) for key, value in text["rope_parameters"].items()}
    text["softmax_scale_rule"] = rule
    fields = {
        "text_config": text,
        "tie_word_embeddings": "output.weight" not in headers,
        **_vision(facts, headers, file),
    }
    if fields["vision_config"] is None:
        remarks.append("vision: no mmproj file beside, so the result reads text only")
    return build_config(fields, file), tuple(remarks)


def _vision(facts: dict[str, Any], headers: dict[str, Stored], file: Path) -> dict[str, Any]:
    if not any(name.startswith("v.blk.") for name in headers):
        return {"vision_config": None}
    if facts.get("clip.projector_type") != "pixtral":
        raise CheckpointError(
            f"{file}: the file for vision has projector {shown(facts.get('clip.projector_type'))}, not 'pixtral'"
        )
    vision: dict[str, Any] = {field: _fact(facts, key, file) for key, field in _VISION.items()}
    vision["rope_parameters"] = {"rope_theta": float(facts.get("clip.rope.freq_base", 10000.0))}
    return {
        "vision_config": vision,
        "spatial_merge_size": int(facts.get("clip.vision.spatial_merge_size", 1)),
        "multimodal_projector_bias": "mm.1.bias" in headers,
    }


def _fact(facts: dict[str, Any], key: str, file: Path) -> Any:
    if key not in facts:
        raise CheckpointError(f"{file}: {key} is missing")
    return facts[key]


def _rounded(value: object) -> Any:
    """A float32 number as it was originally written: 1e-06 for 9.99999997e-07."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
