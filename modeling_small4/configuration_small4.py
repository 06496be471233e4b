"""Configuration of Small 4: text decoder, vision tower and the two together. The defaults are the released model.

Field names are those of transformers' `mistral4`, `pixtral` and `mistral3`, so the release's own `config.json` (model
type `mistral3`, old and new spellings) is read as it is. This file knows sizes and rules; it never touches tensors or
paths.
"""

import difflib
import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial, wraps
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .files_reading import naming, reason_of, shown
from .files_saving import NoLinksFollowed
from .stored_config import stored_entry

SOFTMAX_SCALE_RULES = ("released", "transformers")

# Read from other layouts and then dropped: either derived here, or a statement about something that has one form only.
_IGNORED_TEXT_KEYS = {"head_dim", "qk_head_dim", "partial_rotary_factor", "pretraining_tp", "sliding_window"}
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


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}={shown(value)} cannot work: {allowed}.")


@dataclass(frozen=True)
class _Check:
    """A rule of one field: whether a configuration keeps it, and what is allowed, in which `{c.name}` is a field's
    value.
    """

    field: str
    holds: Callable[[Any], bool]
    allowed: str


def _positive(*names: str, most: int = 2**20) -> tuple[_Check, ...]:
    """The rule of sizes and counts. `most` is far above what any machine holds, and low enough that no product of sizes
    overflows.
    """
    allowed = f"it must be a positive integer of at most {most}"
    return tuple(_Check(name, partial(_is_whole, name, 1, most), allowed) for name in names)


def _is_whole(name: str, least: int, most: int, config: Any) -> bool:
    value = getattr(config, name)
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(*names: str, least: float = 0.0, most: float, optional: bool = False) -> tuple[_Check, ...]:
    """The rule of settings that are numbers; NaN and infinity are none."""
    allowed = f"it must be a number between {least:g} and {most:g}" + (", or None" if optional else "")
    return tuple(_Check(name, partial(_in_range, name, least, most, optional), allowed) for name in names)


def _in_range(name: str, least: float, most: float, optional: bool, config: Any) -> bool:
    value = getattr(config, name)
    return (optional and value is None) or _is_number(value, least, most)


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _activation(name: str) -> _Check:
    return _Check(name, partial(_is_activation, name), "transformers has no activation function of this name")


def _is_activation(name: str, config: Any) -> bool:
    from transformers.activations import ACT2FN  # only here, for it imports torch

    return getattr(config, name) in ACT2FN


def _warn_of_misspellings(config: PreTrainedConfig, unknown: dict[str, Any]) -> None:
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


def _is_dtype(value: Any) -> bool:
    return value is None or re.fullmatch(r"(torch\.)?(auto|bfloat16|float\d+(_\w+)?)", str(value)) is not None


# Fields that transformers adds and takes as they come, and stumbles over later.
_HOSTS_FIELDS = (
    _Check(
        "architectures",
        lambda c: (
            c.architectures is None
            or (isinstance(c.architectures, list) and all(isinstance(name, str) for name in c.architectures))
        ),
        "it must be a list of names",
    ),
    _Check("dtype", lambda c: _is_dtype(c.dtype), "it must be the name of a floating dtype of torch"),
    _Check("auto_map", lambda c: isinstance(getattr(c, "auto_map", None) or {}, dict), "it must be an object"),
    _Check(
        "quantization_config",
        lambda c: (
            getattr(c, "quantization_config", None) is None
            or isinstance(c.quantization_config, dict)
            or hasattr(c.quantization_config, "to_dict")
        ),
        "it must be an object",
    ),
)


class _Small4BaseConfig(NoLinksFollowed, PreTrainedConfig):
    """What the three configurations share: checks at construction, misspelling warnings, an `auto_map` for
    libraries.
    """

    _checks: ClassVar[tuple[_Check, ...]] = ()

    def _finish(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)  # "mistral3" from a foreign config.json must not shadow the class attribute
        _warn_of_misspellings(self, kwargs)
        self.validate_rope()  # before the host fills in what is missing
        kwargs.setdefault("auto_map", {})  # read by trainers as `config.auto_map`; not written while empty
        PreTrainedConfig.__post_init__(self, **kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Refuse sizes that cannot work, at construction, at saving and when a model is built."""
        for check in self._checks + _HOSTS_FIELDS:
            if not check.holds(self):
                _require(False, check.field, getattr(self, check.field), check.allowed.format(c=self))
        self.validate_rope()

    def _remove_keys_not_serialized(self, d: dict[str, Any]) -> None:
        super()._remove_keys_not_serialized(d)
        if not d.get("auto_map", True):
            del d["auto_map"]


def _refusing(cls: type[Any]) -> type[Any]:
    """Let a value of a wrong kind be a ValueError that names the field, whatever the host's checks raise over it."""
    construct = cls.__init__

    @wraps(construct)
    def checked(self: Any, *args: Any, **fields: Any) -> None:
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


@_refusing
@strict
class Small4TextConfig(_Small4BaseConfig):
    r"""
    The text decoder: multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), YaRN positions (arXiv:2309.00071) and
    a mixture of experts.

    Args:
        vocab_size (`int`, defaults to 131072): Tokens in the vocabulary, 1000 control tokens included.
        hidden_size (`int`, defaults to 4096): Width of the residual stream.
        intermediate_size (`int`, defaults to 12288): Width of a dense feed-forward layer (only used when
            `first_k_dense_replace > 0`).
        moe_intermediate_size (`int`, defaults to 2048): Width of one expert.
        num_hidden_layers (`int`, defaults to 36): Decoder layers.
        num_attention_heads (`int`, defaults to 32): Query heads; keys and values have as many once expanded.
        q_lora_rank (`int` or `None`, defaults to 1024): Rank of the query projection; `None` means one full projection.
        kv_lora_rank (`int`, defaults to 256): Width of the key/value latent that is cached.
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim (`int`): Widths per head without position, with position, and of
            values.
        n_routed_experts, n_shared_experts, num_experts_per_tok (`int`): 128 experts, one always active, 4 chosen per
        token.
        n_group, topk_group (`int`): Experts are chosen within the best `topk_group` of `n_group` equal groups.
        norm_topk_prob (`bool`), routed_scaling_factor (`float`): Chosen weights are renormalized to sum 1, then scaled.
        first_k_dense_replace (`int`, defaults to 0): The first layers that are dense.
        softmax_scale_rule (`"released"` or `"transformers"`): `"released"`: scores are scaled by `qk_head_dim ** -0.5`.
            `"transformers"`: also by `(0.1 * ln(factor) + 1) ** 2`, YaRN's magnitude correction (raw
            `yarn.apply_scale: true`).
            It is never inferred from `mscale` keys: the released `config.json` carries those and means no correction.
        rope_parameters (`dict`): `rope_type` (`"yarn"` or `"default"`), `rope_theta`, and for YaRN `factor`,
            `original_max_position_embeddings`, `beta_fast`, `beta_slow`, `truncate`. `llama_4_scaling_beta` scales
            whole queries by `1 + beta * ln(1 + floor(position / original_max_position_embeddings))`.
        router_aux_loss_coef, router_z_loss_coef (`float`): Weights of the load-balancing loss (arXiv:2101.03961) and of
            the router z-loss (arXiv:2202.08906), added to the loss when `output_router_logits` is on.
        router_aux_loss_per_layer (`bool`, defaults to `False`): Balance the load of each layer by itself. Otherwise, as
            in transformers' Mixtral, that of all layers together, in which an expert overrun in one layer and idle in
            another counts as balanced.

    Raises:
        ValueError: A size or rule that cannot work; the message says what is allowed.
    """

    model_type = "small4_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012
    attribute_map = {"num_local_experts": "n_routed_experts", "num_experts": "n_routed_experts"}  # noqa: RUF012
    base_model_tp_plan = {  # noqa: RUF012
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.q_b_proj": "colwise",
        "layers.*.self_attn.kv_a_proj_with_mqa": "mla_kv_a_proj",
        "layers.*.self_attn.kv_b_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.shared_experts.gate_proj": "colwise",
        "layers.*.mlp.shared_experts.up_proj": "colwise",
        "layers.*.mlp.shared_experts.down_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {  # noqa: RUF012
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    base_model_ep_plan = {  # noqa: RUF012
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }

    _checks = (
        *_positive("hidden_size", "intermediate_size", "moe_intermediate_size", "kv_lora_rank", "qk_nope_head_dim"),
        *_positive("qk_rope_head_dim", "v_head_dim"),
        *_positive(
            "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "num_attention_heads", most=2**14
        ),
        *_positive("num_hidden_layers", most=1000),
        *_positive("vocab_size", most=2**24),
        *_positive("max_position_embeddings", most=2**40),
        _Check(
            "q_lora_rank", lambda c: c.q_lora_rank is None or 0 < c.q_lora_rank <= 2**20, "it must be positive, or None"
        ),
        _Check("qk_rope_head_dim", lambda c: c.qk_rope_head_dim % 2 == 0, "it must be even: positions rotate pairs"),
        _Check(
            "num_key_value_heads",
            lambda c: c.num_key_value_heads == c.num_attention_heads,
            "latent attention has as many as query heads, {c.num_attention_heads}",
        ),
        _Check("n_shared_experts", partial(_is_whole, "n_shared_experts", 0, 1000), "it must be 0 or more, up to 1000"),
        _Check(
            "n_group",
            lambda c: c.n_routed_experts % c.n_group == 0,
            "the {c.n_routed_experts} experts (n_routed_experts) must divide evenly into groups",
        ),
        _Check("topk_group", lambda c: c.topk_group <= c.n_group, "at most n_group={c.n_group} groups can be chosen"),
        _Check(
            "num_experts_per_tok",
            lambda c: c.num_experts_per_tok <= c.reachable_experts,
            "at most {c.reachable_experts} experts can be chosen (n_routed_experts={c.n_routed_experts}, "
            "{c.topk_group} of {c.n_group} groups)",
        ),
        _Check(
            "first_k_dense_replace",
            lambda c: _is_whole("first_k_dense_replace", 0, c.num_hidden_layers, c),
            "it must be between 0 and {c.num_hidden_layers}",
        ),
        _Check(
            "rms_norm_eps",
            lambda c: c.rms_norm_eps > 0 and _is_number(c.rms_norm_eps, 0, 1),
            "it must be above 0, up to 1",
        ),
        *_number("routed_scaling_factor", most=1e6),
        *_number("initializer_range", most=1),
        *_number("attention_dropout", most=1, optional=True),
        *_number("router_aux_loss_coef", "router_z_loss_coef", most=1e6),
        _activation("hidden_act"),
        _Check(
            "pad_token_id",
            lambda c: c.pad_token_id is None or -c.vocab_size <= c.pad_token_id < c.vocab_size,
            "it must be an id below vocab_size={c.vocab_size}, or None",
        ),
        _Check(
            "softmax_scale_rule",
            lambda c: c.softmax_scale_rule in SOFTMAX_SCALE_RULES,
            f"it must be one of {', '.join(SOFTMAX_SCALE_RULES)}",
        ),
    )

    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 12288
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: Any = None
    q_lora_rank: int | None = 1024
    kv_lora_rank: int = 256
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_routed_experts: int = 128
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    n_group: Any = 1
    topk_group: Any = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float | int = 1.0
    first_k_dense_replace: Any = 0
    hidden_act: str = "silu"
    rms_norm_eps: float | int = 1e-6
    max_position_embeddings: int = 1048576
    rope_parameters: Any = None
    softmax_scale_rule: Literal["released", "transformers"] = "released"
    attention_bias: bool = False
    attention_dropout: float | int | None = 0.0
    initializer_range: float | int = 0.02
    use_cache: bool = True
    output_router_logits: bool = False
    router_aux_loss_coef: float | int = 0.001
    router_z_loss_coef: float | int = 0.0
    router_aux_loss_per_layer: bool = False
    pad_token_id: int | None = 11
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name in _IGNORED_TEXT_KEYS:
            kwargs.pop(name, None)
        _require(
            kwargs.pop("rope_interleave", True) is not False,
            "rope_interleave",
            False,
            "rotary pairs are interleaved in every Small 4",
        )
        self.rope_parameters = _rope_parameters(kwargs.pop("rope_scaling", None) or self.rope_parameters, kwargs)
        for name, default in (("num_key_value_heads", self.num_attention_heads), ("n_group", 1), ("topk_group", 1)):
            if getattr(self, name) is None:
                setattr(self, name, default)
        if self.first_k_dense_replace is None:
            self.first_k_dense_replace = 0
        self._finish(**kwargs)

    @property
    def reachable_experts(self) -> int:
        """Experts of the groups that are chosen for one token."""
        return self.n_routed_experts // self.n_group * self.topk_group

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head: the part without position, then the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def head_dim(self) -> int:
        """Same as `qk_head_dim`, under the name that transformers' cache and serving code reads."""
        return self.qk_head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor on attention scores under `softmax_scale_rule`."""
        scale = self.qk_head_dim**-0.5
        if self.softmax_scale_rule == "transformers" and self.rope_parameters["rope_type"] == "yarn":
            scale *= (0.1 * math.log(max(self.rope_parameters["factor"], 1.0)) + 1.0) ** 2
        return scale

    def validate_rope(self) -> None:
        """Replaces the host's check, which only warns: a rotary setting that cannot work is refused."""
        rope = self.rope_parameters
        yarn = rope["rope_type"] == "yarn"
        allowed = "rope_type must be 'yarn' or 'default'"
        _require(yarn or rope["rope_type"] == "default", "rope_parameters['rope_type']", rope["rope_type"], allowed)
        numbers: dict[str, tuple[float, float]] = {"rope_theta": (1.0 + 1e-6 if yarn else 1e-6, 1e30)}
        if yarn:
            numbers |= {"factor": (1, 1e9), "original_max_position_embeddings": (1, 2**40)}
            numbers |= {"beta_fast": (1e-6, 1e9), "beta_slow": (1e-6, 1e9)}
        if rope.get("llama_4_scaling_beta") is not None:
            numbers["llama_4_scaling_beta"] = (0, 1e6)
        for name, (least, most) in numbers.items():
            allowed = f"it must be a number between {least:g} and {most:g}"
            _require(_is_number(rope.get(name), least, most), f"rope_parameters[{name!r}]", rope.get(name), allowed)
        truncate = rope.get("truncate", True)
        _require(isinstance(truncate, bool), "rope_parameters['truncate']", truncate, "it must be true or false")


def _rope_parameters(given: dict[str, Any] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """One spelling of the rotary settings out of the several that configurations carry; a new dict every time.

    Settles amplitude (always 1 here) and magnitude keys: `attention_factor`, `mscale`, `mscale_all_dim` are dropped,
    see `softmax_scale_rule`. Legacy `rope_theta`, `type` and `llama_4_scaling` are folded in.
    """
    _require(given is None or isinstance(given, dict), "rope_parameters", given, "it must be an object")
    rope = dict(given) if given else {"rope_type": "yarn", "factor": 128.0, "original_max_position_embeddings": 8192}
    legacy_type = rope.pop("type", "default")
    rope.setdefault("rope_type", legacy_type)
    theta = kwargs.pop("rope_theta", None)
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = 10000.0 if theta is None else theta
    scaling = kwargs.pop("llama_4_scaling", None) or {}
    _require(isinstance(scaling, dict), "llama_4_scaling", scaling, "it must be an object")
    base = scaling.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    allowed = "query scaling and YaRN share one original_max_position_embeddings"
    _require(base == rope.get("original_max_position_embeddings"), "llama_4_scaling", scaling, allowed)
    candidates = (rope.get("llama_4_scaling_beta"), kwargs.pop("llama_4_scaling_beta", None), scaling.get("beta"))
    rope["llama_4_scaling_beta"] = next((beta for beta in candidates if beta is not None), None if given else 0.1)
    if rope["rope_type"] == "yarn":
        for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            rope[name] = default if rope.get(name) in (None, 0) else rope[name]
    for name in ("attention_factor", "mscale", "mscale_all_dim", "partial_rotary_factor", "max_position_embeddings"):
        rope.pop(name, None)
    return rope


@_refusing
@strict
class Small4VisionConfig(_Small4BaseConfig):
    r"""
    The Pixtral tower (arXiv:2410.07073): square patches, 2-D rotary positions, attention inside each image.

    Args:
        hidden_size (`int`, defaults to 1024), intermediate_size (`int`, defaults to 4096): Widths.
        num_hidden_layers (`int`, defaults to 24), num_attention_heads (`int`, defaults to 16): Depth and heads.
        num_channels (`int`, defaults to 3), patch_size (`int`, defaults to 14): One token reads a `patch_size` pixel
        square.
        image_size (`int`, defaults to 1540): Longest side in pixels; larger images are scaled down by the processor.
        rope_parameters (`dict`): `rope_theta` of the 2-D rotary embedding.
    """

    model_type = "small4_vision"
    base_config_key = "vision_config"
    base_model_fsdp_plan = {"transformer.layers.*": "free_full_weight"}  # noqa: RUF012

    _checks = (
        *_positive("hidden_size", "intermediate_size"),
        *_positive("num_attention_heads", most=2**14),
        *_positive("num_hidden_layers", "num_channels", most=1000),
        *_positive("image_size", "patch_size", most=2**12 * 16),
        _Check(
            "hidden_size",
            lambda c: c.hidden_size % (4 * c.num_attention_heads) == 0,
            "in the tower it must be a multiple of 4 * num_attention_heads "
            "(num_attention_heads={c.num_attention_heads}): rows and "
            "columns each rotate pairs",
        ),
        _Check("image_size", lambda c: c.image_size >= c.patch_size, "it must be at least patch_size={c.patch_size}"),
        _Check(
            "rms_norm_eps",
            lambda c: c.rms_norm_eps > 0 and _is_number(c.rms_norm_eps, 0, 1),
            "it must be above 0, up to 1",
        ),
        *_number("attention_dropout", "initializer_range", most=1),
        _activation("hidden_act"),
    )

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 1540
    patch_size: int = 14
    hidden_act: str = "silu"
    rms_norm_eps: float | int = 1e-5
    attention_dropout: float | int = 0.0
    rope_parameters: Any = None
    initializer_range: float | int = 0.02

    default_rope_type = "axial"

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("head_dim", None)
        given = self.rope_parameters
        _require(given is None or isinstance(given, dict), "vision rope_parameters", given, "it must be an object")
        rope = dict(given or {})
        theta = kwargs.pop("rope_theta", None)
        theta = rope.get("rope_theta", 10000.0 if theta is None else theta)
        self.rope_parameters = {"rope_type": rope.get("rope_type", "axial"), "rope_theta": theta}
        self._finish(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def validate_rope(self) -> None:
        """Only 2-D ("axial") rotary positions exist for the tower."""
        rope = self.rope_parameters
        ok = rope["rope_type"] in ("axial", "default")
        _require(ok, "vision rope_parameters['rope_type']", rope["rope_type"], "it must be 'axial'")
        theta, allowed = rope["rope_theta"], "it must be a positive number of at most 1e30"
        _require(_is_number(theta, 1e-6, 1e30), "vision rope_parameters['rope_theta']", theta, allowed)


@_refusing
@strict
class Small4Config(_Small4BaseConfig):
    r"""
    Small 4: text decoder, vision tower and the projector between them. `Small4Config()` is the released model.

    Args:
        text_config (`Small4TextConfig` or `dict`): The decoder; left out, the released one.
        vision_config (`Small4VisionConfig`, `dict` or `None`): The tower; left out, the released one; `None`: a
            text-only model.
        image_token_index (`int`, defaults to 10): Id of `[IMG]`, the placeholder of one merged image token. Alias
            `image_token_id`.
        spatial_merge_size (`int`, defaults to 2): Patches merged per side into one token.
        vision_feature_layer (`int`, defaults to -1): Which hidden state of the tower is projected; -1 is the last.
        projector_hidden_act (`str`, defaults to "gelu"), multimodal_projector_bias (`bool`, defaults to `False`): The
        projector.
        tie_word_embeddings (`bool`, defaults to `False`): Share the embedding with the output head.

    Raises:
        ValueError: A size or rule that cannot work, or a sub-configuration of another model.
    """

    model_type = "small4"
    base_model_fsdp_plan = None  # the parts have theirs
    keys_to_ignore_at_inference = ["cache", "past_key_values", "image_hidden_states", "image_outputs"]  # noqa: RUF012
    attribute_map = {"image_token_id": "image_token_index"}  # noqa: RUF012
    sub_configs_defaults = {  # noqa: RUF012
        "text_config": Small4TextConfig,
        "vision_config": SubConfigSpec(config_class=Small4VisionConfig, optional=True),
    }

    _checks = (
        *_positive("spatial_merge_size", most=256),
        _activation("projector_hidden_act"),
        _Check(
            "tie_word_embeddings",
            lambda c: c.tie_word_embeddings or not c.text_config.tie_word_embeddings,
            "text_config.tie_word_embeddings is True; set both alike",
        ),
        _Check(
            "image_token_index",
            lambda c: c.vision_config is None or 0 <= c.image_token_index < c.text_config.vocab_size,
            "it must be an id below vocab_size={c.text_config.vocab_size}",
        ),
        _Check(
            "vision_feature_layer",
            lambda c: (
                c.vision_config is None
                or -c.vision_config.num_hidden_layers - 1 <= c.vision_feature_layer <= c.vision_config.num_hidden_layers
            ),
            "the tower has {c.vision_config.num_hidden_layers} layers",
        ),
    )

    text_config: Any = None
    vision_config: Any = field(default_factory=dict)
    image_token_index: int = 10
    spatial_merge_size: int = 2
    vision_feature_layer: int = -1
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = _sub_config(self.text_config, "text_config", ("small4_text", "mistral4"))
        self.vision_config = _sub_config(self.vision_config, "vision_config", ("small4_vision", "pixtral"))
        text = self.text_config
        inner = (
            text.get("tie_word_embeddings") if isinstance(text, dict) else getattr(text, "tie_word_embeddings", False)
        )
        self.tie_word_embeddings = self.tie_word_embeddings or inner is True
        if "quantization_config" in kwargs:
            kwargs["quantization_config"] = stored_entry(kwargs["quantization_config"])
        self._finish(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "Small4Config":
        """As transformers'. Raises ValueError or OSError that names the file and the field for what cannot be read."""
        with naming(_config_file(pretrained_model_name_or_path)):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers', with the release's own config.json read as Small 4's."""
        config, unused = super().get_config_dict(*args, **kwargs)
        return _as_small4(config), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "Small4Config":
        """As transformers', with the release's own dictionary read as Small 4's."""
        if (name := kwargs.get("name_or_path")) is None:
            return super().from_dict(_as_small4(config_dict), **kwargs)
        with naming(_config_file(name)):  # transformers' AutoConfig comes this way
            return super().from_dict(_as_small4(config_dict), **kwargs)

    def validate_rope(self) -> None:
        """Nothing of its own: the sub-configurations check theirs."""


def _config_file(source: Any) -> str:
    """What a configuration is called in an error: its file in a folder, else what was asked for."""
    return os.path.join(source, "config.json") if os.path.isdir(source) else str(source)


def _as_small4(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of `mistral3` around `mistral4`, or of a text-only `mistral4`, as one of `small4`.

    Raises:
        ValueError: The configuration of another model.
    """
    model_type = config.get("model_type", "small4")
    if model_type in ("mistral4", "small4_text"):
        outer = ("architectures", "dtype", "torch_dtype", "quantization_config", "tie_word_embeddings")
        inner = {key: value for key, value in config.items() if key not in ("architectures", "quantization_config")}
        kept = {key: config[key] for key in outer if key in config}
        config = {**kept, "text_config": inner, "vision_config": None}
    elif model_type not in ("small4", "mistral3"):
        raise ValueError(
            f"This is the configuration of a {shown(model_type)}; Small 4 reads small4, mistral3 and mistral4."
        )
    elif model_type == "mistral3" and "tie_word_embeddings" in config and isinstance(config.get("text_config"), dict):
        # transformers reads it at the top only
        config = config | {
            "text_config": config["text_config"] | {"tie_word_embeddings": config["tie_word_embeddings"]}
        }
    return {**config, "model_type": "small4"}


def _sub_config(given: Any, name: str, model_types: tuple[str, ...]) -> Any:
    """Accept `None`, a dict or one of our configurations; re-read those of transformers; refuse another model's."""
    ok = given is None or isinstance(given, (dict, PreTrainedConfig))
    _require(ok, name, given, "it must be an object" + (" or None" if name == "vision_config" else ""))
    model_type = given.get("model_type") if isinstance(given, dict) else getattr(given, "model_type", None)
    if model_type is not None and model_type not in model_types:
        raise ValueError(
            f"{name} is of model type {shown(model_type)}; Small 4 takes {' or '.join(model_types)}, or a dict of its "
            "fields."
        )
    if isinstance(given, PreTrainedConfig) and model_type != model_types[0]:
        return given.to_dict()
    return given


__all__ = ["Small4Config", "Small4TextConfig", "Small4VisionConfig"]
