"""The raw layout's `params.json` to our configuration and back, from one table of keys.

What the table does not name (unknown keys, token ids, the image size limit) is kept by carrying the original file
along; it is used again as long as the configuration has not changed. Knows no tensors.
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

from modeling_small4.configuration_small4 import Small4Config
from modeling_small4.files_reading import one_line, shown

from .checkpoint import CheckpointError

KEPT = "raw_params.json"  # the original params.json, byte for byte, in folders of the other layouts


class _Key(NamedTuple):
    raw: str  # dotted path in params.json
    field: str  # dotted path in our configuration
    kind: type
    default: Any = ...  # `...`: the key must be there


_TEXT = (
    _Key("dim", "text_config.hidden_size", int),
    _Key("n_layers", "text_config.num_hidden_layers", int),
    _Key("hidden_dim", "text_config.intermediate_size", int),
    _Key("n_heads", "text_config.num_attention_heads", int),
    _Key("n_kv_heads", "text_config.num_key_value_heads", int),
    _Key("norm_eps", "text_config.rms_norm_eps", float),
    _Key("vocab_size", "text_config.vocab_size", int),
    _Key("max_position_embeddings", "text_config.max_position_embeddings", int, 1048576),
    _Key("tied_embeddings", "tie_word_embeddings", bool, False),
    _Key("q_lora_rank", "text_config.q_lora_rank", int),
    _Key("kv_lora_rank", "text_config.kv_lora_rank", int),
    _Key("qk_nope_head_dim", "text_config.qk_nope_head_dim", int),
    _Key("qk_rope_head_dim", "text_config.qk_rope_head_dim", int),
    _Key("v_head_dim", "text_config.v_head_dim", int),
    _Key("rope_theta", "text_config.rope_parameters.rope_theta", float),
    _Key("yarn.factor", "text_config.rope_parameters.factor", float),
    _Key("yarn.original_max_position_embeddings", "text_config.rope_parameters.original_max_position_embeddings", int),
    _Key("yarn.beta", "text_config.rope_parameters.beta_fast", float),
    _Key("yarn.alpha", "text_config.rope_parameters.beta_slow", float),
    _Key("llama_4_scaling.beta", "text_config.rope_parameters.llama_4_scaling_beta", float),
    _Key("moe.num_experts", "text_config.n_routed_experts", int),
    _Key("moe.num_experts_per_tok", "text_config.num_experts_per_tok", int),
    _Key("moe.expert_hidden_dim", "text_config.moe_intermediate_size", int),
    _Key("moe.num_shared_experts", "text_config.n_shared_experts", int, 1),
    _Key("moe.first_k_dense_replace", "text_config.first_k_dense_replace", int, 0),
    _Key("moe.routed_scale", "text_config.routed_scaling_factor", float, 1.0),
    _Key("moe.num_expert_groups", "text_config.n_group", int, 1),
    _Key("moe.num_expert_groups_per_tok", "text_config.topk_group", int, 1),
)
_VISION = (
    _Key("vision_encoder.hidden_size", "vision_config.hidden_size", int),
    _Key("vision_encoder.num_hidden_layers", "vision_config.num_hidden_layers", int),
    _Key("vision_encoder.num_attention_heads", "vision_config.num_attention_heads", int),
    _Key("vision_encoder.intermediate_size", "vision_config.intermediate_size", int),
    _Key("vision_encoder.num_channels", "vision_config.num_channels", int, 3),
    _Key("vision_encoder.patch_size", "vision_config.patch_size", int),
    _Key("vision_encoder.image_size", "vision_config.image_size", int),
    _Key("vision_encoder.rope_theta", "vision_config.rope_parameters.rope_theta", float),
    _Key("vision_encoder.adapter_bias", "multimodal_projector_bias", bool, False),
    _Key("vision_encoder.spatial_merge_size", "spatial_merge_size", int),
    _Key("vision_encoder.image_token_id", "image_token_index", int, 10),
)
_SCALE = "yarn.apply_scale"
_BETA = "text_config.rope_parameters.llama_4_scaling_beta"

# What the raw layout has one value for, as far as this model goes: (key, values read, value written).
_FIXED: tuple[tuple[str, tuple[Any, ...], Any], ...] = (
    ("moe.route_every_n", (1, None), 1),
    ("moe.use_load_balancing_bias", (False, None), None),
    ("sliding_window", (None,), None),
)
_FIXED_VISION: tuple[tuple[str, tuple[Any, ...], Any], ...] = (
    ("vision_encoder.mm_projector_id", ("patch_merge",), "patch_merge"),
    ("vision_encoder.add_pre_mm_projector_layer_norm", (True,), True),
)
# What ours can say and the raw layout cannot: (field, the only value that can be written).
_UNSAID: tuple[tuple[str, Any], ...] = (
    ("text_config.attention_bias", False),
    ("text_config.norm_topk_prob", True),
    ("text_config.hidden_act", "silu"),
    ("text_config.rope_parameters.rope_type", "yarn"),
    ("text_config.rope_parameters.truncate", True),
)
_UNSAID_VISION: tuple[tuple[str, Any], ...] = (
    ("vision_config.hidden_act", "silu"),
    ("vision_config.rms_norm_eps", 1e-5),
    ("projector_hidden_act", "gelu"),
    ("vision_feature_layer", -1),
)


def config_from_params(params: dict[str, Any], file: Path) -> Small4Config:
    """Our configuration of a model whose `params.json` holds `params`; `file` is named in errors.

    Raises:
        CheckpointError: A key is missing, of the wrong kind or out of range, or asks for a feature that the model does
        not have.
    """
    vision = params.get("vision_encoder") is not None
    fields: dict[str, Any] = {"text_config": {}, "vision_config": {} if vision else None}
    for key in _TEXT + (_VISION if vision else ()):
        _set(fields, key.field, _read(params, key, file))
    for raw, allowed, _ in _FIXED + (_FIXED_VISION if vision else ()):
        value = _get(params, raw)
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise CheckpointError(f"{file}: {raw} is {shown(value)}; only {allowed[0]!r} is supported")
    rope = fields["text_config"]["rope_parameters"]
    base = _read(params, _Key("llama_4_scaling.original_max_position_embeddings", "", int), file)
    if base != rope["original_max_position_embeddings"]:
        raise CheckpointError(f"{file}: llama_4_scaling and yarn differ in original_max_position_embeddings")
    rope["rope_type"] = "yarn"
    scaled = _read(params, _Key(_SCALE, "", bool), file)
    fields["text_config"]["softmax_scale_rule"] = "transformers" if scaled else "released"
    return build_config(fields, file)


def build_config(fields: dict[str, Any], file: Path) -> Small4Config:
    """`Small4Config` from a dict of its fields (or another layout's config.json); its errors name `file`."""
    try:
        return Small4Config.from_dict(fields)
    except Exception as error:  # transformers' strict dataclasses raise several classes of their own
        raise CheckpointError(f"{file}: {one_line(error, 500)}") from None


def params_from_config(config: Small4Config, original: dict[str, Any] | None, file: Path) -> dict[str, Any]:
    """`params.json` of a model with this configuration, without any quantization entry.

    original: the checkpoint's original params.json, kept key for key where the configuration has not changed since.

    Raises:
        CheckpointError: The configuration has a setting for which this layout has no key.
    """
    vision, known = config.vision_config is not None, facts(config)
    for field, value in _UNSAID + (_UNSAID_VISION if vision else ()):
        if known[field] != value:
            raise CheckpointError(f"{file}: {field} is {shown(known[field])}; the raw layout can only say {value!r}")
    params = copy.deepcopy(original) if original else _defaults(config)
    for name in ("quantization", "quantization_config"):
        params.pop(name, None)
    if not vision:
        params.pop("vision_encoder", None)
    if original and same_model(config_from_params(params, file), config):
        return params
    for key in _TEXT + (_VISION if vision else ()):
        _set(params, key.raw, known[key.field])
    for raw, allowed, written in _FIXED + (_FIXED_VISION if vision else ()):
        if written is not None and _get(params, raw) not in allowed:
            _set(params, raw, written)
    base = config.text_config.rope_parameters["original_max_position_embeddings"]
    _set(params, "llama_4_scaling.original_max_position_embeddings", base)
    _set(params, _SCALE, config.text_config.softmax_scale_rule == "transformers")
    return params


def _defaults(config: Small4Config) -> dict[str, Any]:
    """Keys that engines read and our configuration has no field for, as the release sets them."""
    out: dict[str, Any] = {"head_dim": config.text_config.qk_head_dim, "moe": {"route_every_n": 1}}
    if config.vision_config is not None:
        out["vision_encoder"] = {"image_break_token_id": 12, "image_end_token_id": 13}
        out["vision_encoder"]["max_image_size"] = config.vision_config.image_size
    return out


def same_model(one: Small4Config, other: Small4Config) -> bool:
    """Whether two configurations describe the same function of the same tensors (training settings aside)."""
    return facts(one) == facts(other)


def facts(config: Small4Config) -> dict[str, Any]:
    """What decides which function of its tensors a model is, by dotted path; the same in every layout."""
    keys = [key.field for key in _TEXT] + [field for field, _ in _UNSAID] + ["text_config.softmax_scale_rule"]
    if config.vision_config is not None:
        keys += [key.field for key in _VISION] + [field for field, _ in _UNSAID_VISION]
    return {key: _plain(config, key, _of(config, key)) for key in keys}


def different_facts(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The paths at which the facts `mine` differ from those that were written down, maybe by an earlier version: what
    that did not write is not compared.
    """
    former = theirs | ({_BETA: 0.0} if theirs.get(_BETA, ...) is None else {})
    return sorted(key for key, value in former.items() if key not in mine or mine[key] != value)


def _plain(config: Small4Config, key: str, value: Any) -> Any:
    """One spelling for values that mean the same."""
    if key == _BETA:
        return value or 0.0
    if key == "text_config.rope_parameters.truncate":
        return value is not False
    if key == "vision_feature_layer" and value >= 0:  # hidden states count from the tower's input
        return value - config.vision_config.num_hidden_layers - 1
    return value


def _read(params: dict[str, Any], key: _Key, file: Path) -> Any:
    value = _get(params, key.raw, key.default)
    if value is ...:
        raise CheckpointError(f"{file}: {key.raw} is missing")
    if key.raw == "q_lora_rank" and value is None:  # one full query projection
        return None
    number = type(value) is int or (key.kind is float and type(value) is float)
    if not (type(value) is bool if key.kind is bool else number):
        kind = {int: "an integer", float: "a number", bool: "true or false"}[key.kind]
        raise CheckpointError(f"{file}: {key.raw} is {shown(value)}, it must be {kind}")
    return float(value) if key.kind is float else value


def _get(tree: dict[str, Any], path: str, default: object = None) -> Any:
    *parents, last = path.split(".")
    for parent in parents:
        tree = tree.get(parent) if isinstance(tree.get(parent), dict) else {}  # type: ignore[assignment]
    return tree.get(last, default)


def _set(tree: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _of(config: Small4Config, path: str) -> Any:
    for name in path.split("."):
        config = config.get(name) if isinstance(config, dict) else getattr(config, name)
    return config
