"""Configuration of Small 4: text decoder, vision tower and the two together. The defaults are the released model.

Field names are those of transformers' `mistral4`, `pixtral` and `mistral3`, so the release's own `config.json` (model type
`mistral3`, old and new spellings) is read as it is. This file knows sizes and rules; it never touches tensors or paths.
"""

import difflib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .saving import NoLinksFollowed
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
        raise ValueError(f"{name}={value!r} cannot work: {allowed}.")


@dataclass(frozen=True)
class _Check:
    """A rule of one field: whether a configuration keeps it, and what is allowed, in which `{c.name}` is a field's value."""

    field: str
    holds: Callable[[Any], bool]
    allowed: str


def _positive(*names: str) -> tuple[_Check, ...]:
    """The rule of sizes and counts."""
    return tuple(_Check(name, partial(_is_positive, name), "it must be a positive integer") for name in names)


def _is_positive(name: str, config: Any) -> bool:
    value = getattr(config, name)
    return isinstance(value, int) and value > 0


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


class _Small4BaseConfig(NoLinksFollowed, PreTrainedConfig):
    """What the three configurations share: checks at construction, misspelling warnings, an `auto_map` for libraries."""

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
        for check in self._checks:
            if not check.holds(self):
                _require(False, check.field, getattr(self, check.field), check.allowed.format(c=self))
        self.validate_rope()

    def _remove_keys_not_serialized(self, d: dict[str, Any]) -> None:
        super()._remove_keys_not_serialized(d)
        if not d.get("auto_map", True):
            del d["auto_map"]


@strict
class Small4TextConfig(_Small4BaseConfig):
    r"""
    The text decoder: multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), YaRN positions (arXiv:2309.00071) and a mixture of experts.

    Args:
        vocab_size (`int`, defaults to 131072): Tokens in the vocabulary, 1000 control tokens included.
        hidden_size (`int`, defaults to 4096): Width of the residual stream.
        intermediate_size (`int`, defaults to 12288): Width of a dense feed-forward layer (only used when `first_k_dense_replace > 0`).
        moe_intermediate_size (`int`, defaults to 2048): Width of one expert.
        num_hidden_layers (`int`, defaults to 36): Decoder layers.
        num_attention_heads (`int`, defaults to 32): Query heads; keys and values have as many once expanded.
        q_lora_rank (`int` or `None`, defaults to 1024): Rank of the query projection; `None` means one full projection.
        kv_lora_rank (`int`, defaults to 256): Width of the key/value latent that is cached.
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim (`int`): Widths per head without position, with position, and of values.
        n_routed_experts, n_shared_experts, num_experts_per_tok (`int`): 128 experts, one always active, 4 chosen per token.
        n_group, topk_group (`int`): Experts are chosen within the best `topk_group` of `n_group` equal groups.
        norm_topk_prob (`bool`), routed_scaling_factor (`float`): Chosen weights are renormalised to sum 1, then scaled.
        first_k_dense_replace (`int`, defaults to 0): The first layers that are dense.
        softmax_scale_rule (`"released"` or `"transformers"`): `"released"`: scores are scaled by `qk_head_dim ** -0.5`.
            `"transformers"`: also by `(0.1 * ln(factor) + 1) ** 2`, YaRN's magnitude correction (raw `yarn.apply_scale: true`).
            It is never inferred from `mscale` keys: the released `config.json` carries those and means no correction.
        rope_parameters (`dict`): `rope_type` (`"yarn"` or `"default"`), `rope_theta`, and for YaRN `factor`,
            `original_max_position_embeddings`, `beta_fast`, `beta_slow`, `truncate`. `llama_4_scaling_beta` scales whole queries by
            `1 + beta * ln(1 + floor(position / original_max_position_embeddings))`.
        router_aux_loss_coef, router_z_loss_coef (`float`): Weights of the load-balancing loss (arXiv:2101.03961) and of the router
            z-loss (arXiv:2202.08906), added to the loss when `output_router_logits` is on.
        router_aux_loss_per_layer (`bool`, defaults to `False`): Balance the load of each layer by itself. Otherwise, as in transformers'
            Mixtral, that of all layers together, in which an expert overrun in one layer and idle in another counts as balanced.

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
        *_positive("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers"),
        *_positive("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *_positive("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "max_position_embeddings"),
        _Check("q_lora_rank", lambda c: c.q_lora_rank is None or c.q_lora_rank > 0, "it must be positive, or None"),
        _Check("qk_rope_head_dim", lambda c: c.qk_rope_head_dim % 2 == 0, "it must be even: positions rotate pairs"),
        _Check(
            "num_key_value_heads",
            lambda c: c.num_key_value_heads == c.num_attention_heads,
            "latent attention has as many as query heads, {c.num_attention_heads}",
        ),
        _Check("n_shared_experts", lambda c: c.n_shared_experts >= 0, "it must be 0 or more"),
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
            lambda c: 0 <= c.first_k_dense_replace <= c.num_hidden_layers,
            "it must be between 0 and {c.num_hidden_layers}",
        ),
        _Check("rms_norm_eps", lambda c: c.rms_norm_eps > 0, "it must be above 0"),
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
        self.first_k_dense_replace = self.first_k_dense_replace or 0
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
        allowed = "rope_type must be 'yarn' or 'default'"
        _require(rope["rope_type"] in ("yarn", "default"), "rope_parameters['rope_type']", rope["rope_type"], allowed)
        numbers = {"rope_theta": 0} | (
            {"factor": 1, "original_max_position_embeddings": 1} if rope["rope_type"] == "yarn" else {}
        )
        for name, least in numbers.items():
            value = rope.get(name)
            ok = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= least and value > 0
            _require(ok, f"rope_parameters[{name!r}]", value, f"it must be a number of at least {least} and above 0")


def _rope_parameters(given: dict[str, Any] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """One spelling of the rotary settings out of the several that configurations carry; a new dict every time.

    Settles amplitude (always 1 here) and magnitude keys: `attention_factor`, `mscale`, `mscale_all_dim` are dropped, see
    `softmax_scale_rule`. Legacy `rope_theta`, `type` and `llama_4_scaling` are folded in.
    """
    rope = dict(given) if given else {"rope_type": "yarn", "factor": 128.0, "original_max_position_embeddings": 8192}
    legacy_type = rope.pop("type", "default")
    rope.setdefault("rope_type", legacy_type)
    theta = kwargs.pop("rope_theta", None)
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = 10000.0 if theta is None else theta
    scaling = kwargs.pop("llama_4_scaling", None) or {}
    base = scaling.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    allowed = "query scaling and YaRN share one original_max_position_embeddings"
    _require(base == rope.get("original_max_position_embeddings"), "llama_4_scaling", scaling, allowed)
    candidates = (rope.get("llama_4_scaling_beta"), kwargs.pop("llama_4_scaling_beta", None), scaling.get("beta"))
    rope["llama_4_scaling_beta"] = next((beta for beta in candidates if beta is not None), None if given else 0.1)
    if rope["rope_type"] == "yarn":
        rope["beta_fast"] = rope.get("beta_fast") or 32.0
        rope["beta_slow"] = rope.get("beta_slow") or 1.0
    for name in ("attention_factor", "mscale", "mscale_all_dim", "partial_rotary_factor", "max_position_embeddings"):
        rope.pop(name, None)
    return rope


@strict
class Small4VisionConfig(_Small4BaseConfig):
    r"""
    The Pixtral tower (arXiv:2410.07073): square patches, 2-D rotary positions, attention inside each image.

    Args:
        hidden_size (`int`, defaults to 1024), intermediate_size (`int`, defaults to 4096): Widths.
        num_hidden_layers (`int`, defaults to 24), num_attention_heads (`int`, defaults to 16): Depth and heads.
        num_channels (`int`, defaults to 3), patch_size (`int`, defaults to 14): One token reads a `patch_size` pixel square.
        image_size (`int`, defaults to 1540): Longest side in pixels; larger images are scaled down by the processor.
        rope_parameters (`dict`): `rope_theta` of the 2-D rotary embedding.
    """

    model_type = "small4_vision"
    base_config_key = "vision_config"
    base_model_fsdp_plan = {"transformer.layers.*": "free_full_weight"}  # noqa: RUF012

    _checks = (
        *_positive("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
        *_positive("image_size", "patch_size"),
        _Check(
            "hidden_size",
            lambda c: c.hidden_size % (4 * c.num_attention_heads) == 0,
            "in the tower it must be a multiple of 4 * num_attention_heads (num_attention_heads={c.num_attention_heads}): rows and "
            "columns each rotate pairs",
        ),
        _Check("image_size", lambda c: c.image_size >= c.patch_size, "it must be at least patch_size={c.patch_size}"),
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
        rope = dict(self.rope_parameters or {})
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
        ok = isinstance(rope["rope_theta"], (int, float)) and rope["rope_theta"] > 0
        _require(ok, "vision rope_parameters['rope_theta']", rope["rope_theta"], "it must be a positive number")


@strict
class Small4Config(_Small4BaseConfig):
    r"""
    Small 4: text decoder, vision tower and the projector between them. `Small4Config()` is the released model.

    Args:
        text_config (`Small4TextConfig` or `dict`): The decoder; left out, the released one.
        vision_config (`Small4VisionConfig`, `dict` or `None`): The tower; left out, the released one; `None`: a text-only model.
        image_token_index (`int`, defaults to 10): Id of `[IMG]`, the placeholder of one merged image token. Alias `image_token_id`.
        spatial_merge_size (`int`, defaults to 2): Patches merged per side into one token.
        vision_feature_layer (`int`, defaults to -1): Which hidden state of the tower is projected; -1 is the last.
        projector_hidden_act (`str`, defaults to "gelu"), multimodal_projector_bias (`bool`, defaults to `False`): The projector.
        tie_word_embeddings (`bool`, defaults to `False`): Share the embedding with the output head.

    Raises:
        ValueError: A size or rule that cannot work, or a sub-configuration of another model.
    """

    model_type = "small4"
    base_model_fsdp_plan = None  # the parts have theirs
    attribute_map = {"image_token_id": "image_token_index"}  # noqa: RUF012
    sub_configs_defaults = {  # noqa: RUF012
        "text_config": Small4TextConfig,
        "vision_config": SubConfigSpec(config_class=Small4VisionConfig, optional=True),
    }

    _checks = (
        *_positive("spatial_merge_size"),
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
        if "quantization_config" in kwargs:
            kwargs["quantization_config"] = stored_entry(kwargs["quantization_config"])
        self._finish(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers', with the release's own config.json read as Small 4's."""
        config, unused = super().get_config_dict(*args, **kwargs)
        return _as_small4(config), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "Small4Config":
        """As transformers', with the release's own dictionary read as Small 4's."""
        return super().from_dict(_as_small4(config_dict), **kwargs)

    def validate_rope(self) -> None:
        """Nothing of its own: the sub-configurations check theirs."""


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
        raise ValueError(f"This is the configuration of a {model_type!r}; Small 4 reads small4, mistral3 and mistral4.")
    return {**config, "model_type": "small4"}


def _sub_config(given: Any, name: str, model_types: tuple[str, ...]) -> Any:
    """Accept `None`, a dict or one of our configurations; re-read those of transformers; refuse another model's."""
    model_type = given.get("model_type") if isinstance(given, dict) else getattr(given, "model_type", None)
    if model_type is not None and model_type not in model_types:
        raise ValueError(
            f"{name} is of model type {model_type!r}; Small 4 takes {' or '.join(model_types)}, or a dict of its fields."
        )
    if isinstance(given, PreTrainedConfig) and model_type != model_types[0]:
        return given.to_dict()
    return given


__all__ = ["Small4Config", "Small4TextConfig", "Small4VisionConfig"]
