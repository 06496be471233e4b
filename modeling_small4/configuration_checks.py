"""What a value of a configuration may be: a table of rules for each of the three configurations, and the errors.

Knows fields by name only; never imports the configurations, tensors or paths.
"""

import difflib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial, wraps
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .files_reading import reason_of, shown

SOFTMAX_SCALE_RULES = ("released", "transformers")

_COMMON_KEYS = {
    "attn_implementation",
    "experts_implementation",
    "output_attentions",
    "name_or_path",
    "torch_dtype",
    "num_labels",
    "auto_map",
    "quantization_config",
    "rope_scaling",
    "rope_theta",
    "per_layer_config",
    "tie_last_hidden_states",
    "use_cache",
    "dtype",
}


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}={shown(value)} cannot work: {allowed}.")


@dataclass(frozen=True)
class Check:
    """A rule of one field: whether a configuration keeps it, and what is allowed, in which `{c.name}` is a field's
    value.
    """

    field: str
    holds: Callable[[Any], bool]
    allowed: str


def _positive(*names: str, most: int = 2**20) -> tuple[Check, ...]:
    """The rule of sizes and counts. `most` is far above what any machine holds, and low enough that no product of sizes
    overflows.
    """
    allowed = f"it must be a positive integer of at most {most}"
    return tuple(Check(name, partial(_is_whole, name, 1, most), allowed) for name in names)


def _is_whole(name: str, least: int, most: int, config: PreTrainedConfig) -> bool:
    value = getattr(config, name)
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(*names: str, least: float = 0.0, most: float, optional: bool = False) -> tuple[Check, ...]:
    """The rule of settings that are numbers; NaN and infinity are none."""
    allowed = f"it must be a number between {least:g} and {most:g}" + (", or None" if optional else "")
    return tuple(Check(name, partial(_in_range, name, least, most, optional), allowed) for name in names)


def _in_range(name: str, least: float, most: float, optional: bool, config: PreTrainedConfig) -> bool:
    value = getattr(config, name)
    return (optional and value is None) or is_number(value, least, most)


def is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _activation(name: str) -> Check:
    return Check(name, partial(_is_activation, name), "transformers has no activation function of this name")


def _is_activation(name: str, config: PreTrainedConfig) -> bool:
    from transformers.activations import ACT2FN  # only here, for it imports torch

    return getattr(config, name) in ACT2FN


def warn_of_misspellings(config: PreTrainedConfig, unknown: dict[str, Any]) -> None:
    """A keyword that no field has, but which looks like one, is most likely a slip: name the field meant."""
    known = {f.name for f in fields(config)} | set(config.attribute_map)
    for name in unknown.keys() - _COMMON_KEYS - known:
        if name.startswith("_"):
            continue
        if close := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            warnings.warn(
                f"{type(config).__name__} has no field {name!r}; did you mean {close[0]!r}? "
                f"The value {unknown[name]!r} is stored but nothing reads it.",
                UserWarning,
                stacklevel=2,
            )


def _is_dtype(value: object) -> bool:
    return value is None or re.fullmatch(r"(torch\.)?(auto|bfloat16|float\d+(_\w+)?)", str(value)) is not None


# Fields that transformers adds and takes as they come, and stumbles over later.
HOST_CHECKS = (
    Check(
        "architectures",
        lambda c: (
            c.architectures is None
            or (isinstance(c.architectures, list) and all(isinstance(name, str) for name in c.architectures))
        ),
        "it must be a list of names",
    ),
    Check("dtype", lambda c: _is_dtype(c.dtype), "it must be the name of a floating dtype of torch"),
    Check("auto_map", lambda c: isinstance(getattr(c, "auto_map", None) or {}, dict), "it must be an object"),
    Check(
        "quantization_config",
        lambda c: (
            getattr(c, "quantization_config", None) is None
            or isinstance(c.quantization_config, dict)
            or hasattr(c.quantization_config, "to_dict")
        ),
        "it must be an object",
    ),
)


TEXT_CHECKS = (
    *_positive("hidden_size", "intermediate_size", "moe_intermediate_size", "kv_lora_rank", "qk_nope_head_dim"),
    *_positive("qk_rope_head_dim", "v_head_dim"),
    *_positive("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "num_attention_heads", most=2**14),
    *_positive("num_hidden_layers", most=1000),
    *_positive("vocab_size", most=2**24),
    *_positive("max_position_embeddings", most=2**40),
    Check("q_lora_rank", lambda c: c.q_lora_rank is None or 0 < c.q_lora_rank <= 2**20, "it must be positive, or None"),
    Check("qk_rope_head_dim", lambda c: c.qk_rope_head_dim % 2 == 0, "it must be even: positions rotate pairs"),
    Check(
        "num_key_value_heads",
        lambda c: c.num_key_value_heads == c.num_attention_heads,
        "latent attention has as many as query heads, {c.num_attention_heads}",
    ),
    Check("n_shared_experts", partial(_is_whole, "n_shared_experts", 0, 1000), "it must be 0 or more, up to 1000"),
    Check(
        "n_group",
        lambda c: c.n_routed_experts % c.n_group == 0,
        "the {c.n_routed_experts} experts (n_routed_experts) must divide evenly into groups",
    ),
    Check("topk_group", lambda c: c.topk_group <= c.n_group, "at most n_group={c.n_group} groups can be chosen"),
    Check(
        "num_experts_per_tok",
        lambda c: c.num_experts_per_tok <= c.reachable_experts,
        "at most {c.reachable_experts} experts can be chosen (n_routed_experts={c.n_routed_experts}, "
        "{c.topk_group} of {c.n_group} groups)",
    ),
    Check(
        "first_k_dense_replace",
        lambda c: _is_whole("first_k_dense_replace", 0, c.num_hidden_layers, c),
        "it must be between 0 and {c.num_hidden_layers}",
    ),
    Check(
        "rms_norm_eps",
        lambda c: c.rms_norm_eps > 0 and is_number(c.rms_norm_eps, 0, 1),
        "it must be above 0, up to 1",
    ),
    *_number("routed_scaling_factor", most=1e6),
    *_number("initializer_range", most=1),
    *_number("attention_dropout", most=1, optional=True),
    *_number("router_aux_loss_coef", "router_z_loss_coef", most=1e6),
    _activation("hidden_act"),
    Check(
        "pad_token_id",
        lambda c: c.pad_token_id is None or -c.vocab_size <= c.pad_token_id < c.vocab_size,
        "it must be an id below vocab_size={c.vocab_size}, or None",
    ),
    Check(
        "softmax_scale_rule",
        lambda c: c.softmax_scale_rule in SOFTMAX_SCALE_RULES,
        f"it must be one of {', '.join(SOFTMAX_SCALE_RULES)}",
    ),
)


VISION_CHECKS = (
    *_positive("hidden_size", "intermediate_size"),
    *_positive("num_attention_heads", most=2**14),
    *_positive("num_hidden_layers", "num_channels", most=1000),
    *_positive("image_size", "patch_size", most=2**12 * 16),
    Check(
        "hidden_size",
        lambda c: c.hidden_size % (4 * c.num_attention_heads) == 0,
        "in the tower it must be a multiple of 4 * num_attention_heads "
        "(num_attention_heads={c.num_attention_heads}): rows and "
        "columns each rotate pairs",
    ),
    Check("image_size", lambda c: c.image_size >= c.patch_size, "it must be at least patch_size={c.patch_size}"),
    Check(
        "rms_norm_eps",
        lambda c: c.rms_norm_eps > 0 and is_number(c.rms_norm_eps, 0, 1),
        "it must be above 0, up to 1",
    ),
    *_number("attention_dropout", "initializer_range", most=1),
    _activation("hidden_act"),
)


MODEL_CHECKS = (
    *_positive("spatial_merge_size", most=256),
    _activation("projector_hidden_act"),
    Check(
        "tie_word_embeddings",
        lambda c: c.tie_word_embeddings or not c.text_config.tie_word_embeddings,
        "text_config.tie_word_embeddings is True; set both alike",
    ),
    Check(
        "image_token_index",
        lambda c: c.vision_config is None or 0 <= c.image_token_index < c.text_config.vocab_size,
        "it must be an id below vocab_size={c.text_config.vocab_size}",
    ),
    Check(
        "vision_feature_layer",
        lambda c: (
            c.vision_config is None
            or -c.vision_config.num_hidden_layers - 1 <= c.vision_feature_layer <= c.vision_config.num_hidden_layers
        ),
        "the tower has {c.vision_config.num_hidden_layers} layers",
    ),
)


def refusing(cls: type[Any]) -> type[Any]:
    """Let a value of a wrong kind be a ValueError that names the field, whatever the host's checks raise over it."""
    construct = cls.__init__

    @wraps(construct)
    def checked(self: object, *args: Any, **fields: Any) -> None:
        try:
            construct(self, *args, **fields)
        except (ValueError, ImportError):
            raise
        except Exception as error:
            raise ValueError(f"{_blamed(cls, construct, fields)}{reason_of(error.__cause__ or error)}") from error

    cls.__init__ = checked
    return cls


def _blamed(cls: type[Any], construct: Callable[..., None], fields: dict[str, Any]) -> str:
    """The field that alone is refused, as the beginning of a message; nothing where it takes several."""
    for name, value in fields.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                construct(object.__new__(cls), **{name: value})
        except (ValueError, ImportError):
            continue  # of the right kind: it only does not fit the default of another field
        except Exception:
            return f"{name}={shown(value)} cannot be read: "
    return ""
