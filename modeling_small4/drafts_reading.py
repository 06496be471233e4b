"""Reads drafts from folders and from the Hub: the official EAGLE layout as it is released, ours, DFlash, small models.

The official layout is `params.json` and `consolidated*.safetensors`, with tensors in Mistral's names, FP8 with one
scale per tensor or plain. Must not know: how drafts are used.
"""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, MuseGlimmerAssistantModel, PreTrainedModel

from .drafts_dflash import DFlashDraft, body_of, is_dflash, read_dflash
from .drafts_eagle import Small4EagleConfig, Small4EagleDraft
from .files_reading import naming, read_json, shown

_FILES = ("params.json", "consolidated*", "config.json", "generation_config.json", "model*.safetensors*")
_NAMES = {  # official name of a module in a layer: ours
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wq_a": "self_attn.q_a_proj",
    "attention.q_a_norm": "self_attn.q_a_layernorm",
    "attention.wq_b": "self_attn.q_b_proj",
    "attention.wkv_a_with_mqa": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_a_norm": "self_attn.kv_a_layernorm",
    "attention.wkv_b": "self_attn.kv_b_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")
_TARGETS = ("tok_embeddings.weight", "output.weight")  # the model has its own
_SCALES = ("qscale_act", "qscale_weight")


def read_draft(name: str, dtype: torch.dtype) -> PreTrainedModel | DFlashDraft:
    """The draft in a folder or Hub repository.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    folder = Path(name) if Path(name).is_dir() else _downloaded(name)
    with naming(folder):
        return _read(name, folder, dtype)


def _read(name: str, folder: Path, dtype: torch.dtype) -> PreTrainedModel | DFlashDraft:
    if is_official(folder):
        return read_official(folder, dtype)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no draft: neither config.json nor params.json with an eagle_linear is in it.")
    config = read_json(folder / "config.json")
    try:
        dflash = is_dflash(config)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    if dflash:
        return read_dflash(folder, dtype)
    if config.get("model_type") == Small4EagleConfig.model_type:
        return Small4EagleDraft.from_pretrained(folder, dtype=dtype)
    AutoConfig.from_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def _downloaded(name: str, files: tuple[str, ...] = _FILES) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"draft {shown(name)} is no folder; give a folder, a Hub name OWNER/NAME, or 'prompt_lookup'.")
    return Path(snapshot_download(name, allow_patterns=list(files)))


def is_official(folder: Path) -> bool:
    """Whether a folder holds an EAGLE draft in the official layout."""
    if not (folder / "params.json").is_file():
        return False
    return any("eagle_linear.weight" in names for names in _names(folder).values())


def is_draft(folder: Path) -> bool:
    """Whether a folder holds an EAGLE draft, in the official layout or ours."""
    if is_official(folder):
        return True
    file = folder / "config.json"
    try:
        return file.is_file() and read_json(file).get("model_type") == Small4EagleConfig.model_type
    except ValueError:
        return False  # a damaged file is reported by who reads it


def draft_bytes(name: str, context: int, batch: int) -> int:
    """Memory that a draft takes in bfloat16: weights, and what it keeps of so many tokens.

    Args:
        name: A folder or Hub repository of an EAGLE or DFlash draft; of the latter only the configuration is read.

    Raises:
        ValueError: There is none of this name.
    """
    folder = Path(name) if Path(name).is_dir() else _downloaded(name, ("params.json", "config.json"))
    with naming(folder):
        return _bytes(name, folder, context, batch)


def _bytes(name: str, folder: Path, context: int, batch: int) -> int:
    ours, raw = folder / "config.json", folder / "params.json"
    content = read_json(ours) if ours.is_file() else {}
    if is_dflash(content):
        return _dflash_bytes(content, context, batch)
    official = content.get("model_type") != Small4EagleConfig.model_type
    if official and (not raw.is_file() or (Path(name).is_dir() and not is_official(folder))):
        raise ValueError(f"{name} holds no EAGLE or DFlash draft; the planner counts none other.")
    file, content = (raw, read_json(raw)) if official else (ours, content)
    with naming(file):
        config = config_of(content, file) if official else Small4EagleConfig.from_dict(content)
    with torch.device("meta"):
        weights = sum(each.numel() for each in Small4EagleDraft(config).parameters())
    return 2 * (weights + config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * context * batch)


def _dflash_bytes(content: dict[str, Any], context: int, batch: int) -> int:
    config, _ = body_of(content)
    with torch.device("meta"):
        weights = sum(each.numel() for each in MuseGlimmerAssistantModel(config).parameters())
    if "transformer_layer_config" in content:  # brings embeddings and a head of its own
        whole = content["transformer_layer_config"]["vocab_size"]
        weights += config.hidden_size * (whole + content.get("draft_vocab_size", whole))
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return 2 * (weights + token * context * batch)


def _names(folder: Path) -> dict[Path, list[str]]:
    out = {}
    for file in sorted(folder.glob("consolidated*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                out[file] = list(opened.keys())
        except (SafetensorError, OSError):
            continue  # a damaged file is reported by who reads it
    return out


def config_of(params: dict[str, Any], file: Path) -> Small4EagleConfig:
    """Our configuration of an official draft. What `params` says of experts does not matter: it has none.

    Raises:
        ValueError: A key is missing, or of no possible value.
    """
    try:
        yarn, scaling = params.get("yarn"), params.get("llama_4_scaling")
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(params["rope_theta"])}
        if yarn is not None:
            rope |= {
                "rope_type": "yarn",
                "factor": float(yarn["factor"]),
                "original_max_position_embeddings": yarn["original_max_position_embeddings"],
                "beta_fast": float(yarn["beta"]),
                "beta_slow": float(yarn["alpha"]),
            }
        if scaling is not None:
            rope["llama_4_scaling_beta"] = float(scaling["beta"])
            rope.setdefault("original_max_position_embeddings", scaling["original_max_position_embeddings"])
        return Small4EagleConfig(
            vocab_size=params["vocab_size"],
            hidden_size=params["dim"],
            intermediate_size=params["hidden_dim"],
            num_hidden_layers=params["n_layers"],
            num_attention_heads=params["n_heads"],
            num_key_value_heads=params.get("n_kv_heads", params["n_heads"]),
            q_lora_rank=params.get("q_lora_rank"),
            kv_lora_rank=params["kv_lora_rank"],
            qk_nope_head_dim=params["qk_nope_head_dim"],
            qk_rope_head_dim=params["qk_rope_head_dim"],
            v_head_dim=params["v_head_dim"],
            rms_norm_eps=float(params["norm_eps"]),
            max_position_embeddings=params.get("max_position_embeddings", 1048576),
            rope_parameters=rope,
            softmax_scale_rule="transformers" if (yarn or {}).get("apply_scale") else "released",
        )
    except KeyError as error:
        raise ValueError(f"{file}: {error.args[0]} is missing") from None


def read_official(folder: Path, dtype: torch.dtype | None = None) -> Small4EagleDraft:
    """An EAGLE draft in the official layout; FP8 weights are expanded to `dtype` (default: bfloat16).

    Raises:
        ValueError: Tensors or keys are missing, of another shape, or unknown.
    """
    file = folder / "params.json"
    with naming(file):
        config = config_of(read_json(file), file)
    dtype = dtype or torch.bfloat16
    with torch.device("meta"):
        draft = Small4EagleDraft(config)
    state, unknown = {}, []
    for part, names in _names(folder).items():
        with safe_open(part, framework="pt") as opened:
            for name in names:
                if name in _TARGETS or name.rsplit(".", 1)[-1] in _SCALES:
                    continue
                if (ours := our_name(name)) is None:
                    unknown.append(name)
                    continue
                state[ours] = _weight(opened, name, names).to(dtype)
    own = draft.state_dict()
    missing = sorted(set(own) - set(state))
    wrong = sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape)
    extra = sorted(unknown + list(set(state) - set(own)))
    for what, names in (("missing", missing), ("of another shape", wrong), ("unknown", extra)):
        if names:
            raise ValueError(
                f"{folder}: is an EAGLE draft with tensors {what}: {', '.join(names[:4])}{' ...' if names[4:] else ''}"
            )
    draft.load_state_dict(state, assign=True)
    draft.config.dtype = dtype
    return draft.eval()


def our_name(name: str) -> str | None:
    """Our name of an official tensor; None for one that an EAGLE draft does not have."""
    if name in ("eagle_linear.weight", "norm.weight"):
        return name if name.startswith("eagle") else "model.norm.weight"
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _NAMES:
        return None
    return f"model.layers.{match[1]}.{_NAMES[match[2]]}.weight"


def _weight(opened: Any, name: str, names: list[str]) -> torch.Tensor:
    weight, scale = opened.get_tensor(name), name.removesuffix("weight") + "qscale_weight"
    if weight.dtype != torch.float8_e4m3fn:
        return weight
    if scale not in names:
        raise ValueError(f"{name} is FP8 and {scale} is missing")
    return weight.float() * opened.get_tensor(scale).float()
