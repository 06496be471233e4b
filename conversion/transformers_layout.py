"""transformers' `config.json` (`mistral3` around `mistral4`, or `mistral4` alone) to our configuration and back.

Only the softmax scale needs a decision; it is made here, with a sentence that explains it. Knows no tensors.
"""

from pathlib import Path
from typing import Any

from modeling_small4.configuration_small4 import Small4Config, Small4TextConfig
from modeling_small4.files_reading import shown

from .checkpoint import CheckpointError
from .raw import build_config

MODEL_TYPES = ("mistral3", "mistral4")
OUR_TYPES = ("small4", "small4_text")

_TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "n_shared_experts", "n_routed_experts", "routed_scaling_factor"),
    *("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim", "n_group", "topk_group"),
    *("num_experts_per_tok", "first_k_dense_replace", "norm_topk_prob", "hidden_act", "max_position_embeddings"),
    *("initializer_range", "rms_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id", "attention_bias"),
    *("attention_dropout",),
)
# Defaults of PixtralVisionConfig, which a config.json may omit, where they differ from ours.
_PIXTRAL_DEFAULTS = {"image_size": 1024, "patch_size": 16, "hidden_act": "gelu"}
_PIXTRAL_EPS = 1e-5
_VISION_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size"),
    *("patch_size", "hidden_act", "attention_dropout", "initializer_range"),
)
_OUTER_FIELDS = (
    *("image_token_index", "projector_hidden_act", "vision_feature_layer", "multimodal_projector_bias"),
    "spatial_merge_size",
)


def config_from_transformers(given: dict[str, Any], rule: str, has_head: bool, file: Path) -> tuple[Small4Config, str]:
    """Our configuration of a transformers folder, and a sentence about the decision on the softmax scale.

    rule: "released": the released `config.json` (mscale = mscale_all_dim = 1.0) means no magnitude correction.
    "transformers": read the keys as transformers >= 5.15 does, for models trained under it.
    has_head: whether the files hold an output head. It decides if a `mistral3` config does not say whether the head is
    tied, because transformers omits the key when it saves, although its default there is a tied head.

    Raises:
        CheckpointError: Another model, or a scale that our configuration cannot express.
    """
    text = given.get("text_config", given)
    if not isinstance(text, dict) or text.get("model_type") != "mistral4":
        kind = text.get("model_type") if isinstance(text, dict) else text
        raise CheckpointError(f"{file}: the text model is {shown(kind)}, not 'mistral4'")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{file}: rope_parameters is {shown(rope)}, it must be an object")
    corrected, why = _softmax_rule(rope, rule, file)
    text = {**text, "softmax_scale_rule": "transformers" if corrected else "released"}
    if "text_config" in given:
        given = {**given, "text_config": text}
        if isinstance(vision := given.get("vision_config"), dict):
            given["vision_config"] = {**_PIXTRAL_DEFAULTS, **vision}
    config = build_config(given if "text_config" in given else text, file)
    tied = bool(given.get("tie_word_embeddings", given.get("model_type") == "mistral3" and not has_head))
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    return config, why


def _softmax_rule(rope: dict[str, Any], rule: str, file: Path) -> tuple[bool, str]:
    factor, overall, part = (rope.get(key) for key in ("attention_factor", "mscale_all_dim", "mscale"))
    if factor not in (None, 1, 1.0) or (factor is None and overall and part and overall != part):
        raise CheckpointError(
            f"{file}: rope_parameters change the rotary amplitude (attention_factor {shown(factor)}, "
            f"mscale {shown(part)}, mscale_all_dim {shown(overall)}); Small 4 has amplitude 1"
        )
    keys = f"mscale_all_dim {shown(overall)} in config.json"
    if rule == "released":
        return False, f"released: qk_head_dim ** -0.5, no correction ({keys}, read as the release means it)"
    if overall not in (None, 0, 0.0, 1, 1.0):
        raise CheckpointError(f"{file}: mscale_all_dim is {shown(overall)}; only 0 and 1 have a meaning here")
    if overall:
        return True, f"transformers: times (0.1 ln(factor) + 1) ** 2 ({keys}, read as transformers >= 5.15 does)"
    return False, f"released: qk_head_dim ** -0.5, no correction ({keys})"


def transformers_config(config: Small4Config, dtype: str) -> dict[str, Any]:
    """`config.json` with which transformers' own classes compute the same logits.

    Without magnitude correction `attention_factor` 1.0 and `mscale_all_dim` 0.0, which every version reads as none, and
    `mscale` 0.0 for readers like MLX that know no `attention_factor`; with it `mscale = mscale_all_dim = 1.0`.

    Raises:
        CheckpointError: The tower's norms have another epsilon than transformers' Pixtral, where it is no setting.
    """
    text = _text(config.text_config, dtype)
    if config.vision_config is None:
        tied = {"tie_word_embeddings": config.tie_word_embeddings}
        return {"architectures": ["Mistral4ForCausalLM"], **text, **tied}
    if config.vision_config.rms_norm_eps != _PIXTRAL_EPS:
        given = shown(config.vision_config.rms_norm_eps)
        raise CheckpointError(
            f"vision_config.rms_norm_eps is {given}; in transformers' layout it can only be {_PIXTRAL_EPS}"
        )
    vision = {name: getattr(config.vision_config, name) for name in _VISION_FIELDS}
    rope = config.vision_config.rope_parameters
    vision |= {"model_type": "pixtral", "head_dim": config.vision_config.head_dim, "dtype": dtype}
    vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": rope["rope_theta"]}
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "dtype": dtype,
        "text_config": {**text, "tie_word_embeddings": config.tie_word_embeddings},
        "vision_config": vision,
        **{name: getattr(config, name) for name in _OUTER_FIELDS},
        "tie_word_embeddings": config.tie_word_embeddings,
    }


_NO_SCALE = {"mscale": 0.0, "mscale_all_dim": 0.0}


def _text(text: Small4TextConfig, dtype: str) -> dict[str, Any]:
    rope = dict(text.rope_parameters)
    corrected = text.softmax_scale_rule == "transformers"
    rope |= {"mscale": 1.0, "mscale_all_dim": 1.0} if corrected else {"attention_factor": 1.0, **_NO_SCALE}
    rope["type"] = rope["rope_type"]
    rope["partial_rotary_factor"] = text.qk_rope_head_dim / text.qk_head_dim
    if rope.get("llama_4_scaling_beta") is None:
        rope["llama_4_scaling_beta"] = 0.0
    fields = {name: getattr(text, name) for name in _TEXT_FIELDS}
    return {"model_type": "mistral4", "dtype": dtype, **fields, "rope_parameters": rope, "rope_interleave": True}
