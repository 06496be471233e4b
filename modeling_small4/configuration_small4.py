"""Configuration of Small 4: text decoder, vision tower and the two together. The defaults are the released model.

Field names are those of transformers' `mistral4`, `pixtral` and `mistral3`, so the release's own `config.json` (model
type `mistral3`, old and new spellings) is read as it is. What values may be: `configuration_checks`; other layouts:
`configuration_spellings`. Never touches tensors.
"""

import math
import os
from dataclasses import field
from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_checks import (
    HOST_CHECKS,
    MODEL_CHECKS,
    TEXT_CHECKS,
    VISION_CHECKS,
    Check,
    is_number,
    refusing,
    require,
    warn_of_misspellings,
)
from .configuration_spellings import IGNORED_TEXT_KEYS, as_small4, read_rope_parameters, sub_config
from .files_reading import folder_of, naming, read_json
from .files_saving import NoLinksFollowed
from .stored_config import stored_entry


class _Small4BaseConfig(NoLinksFollowed, PreTrainedConfig):
    """What the three configurations share: checks at construction, misspelling warnings, an `auto_map` for
    libraries.
    """

    _checks: ClassVar[tuple[Check, ...]] = ()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Self:
        """As transformers'. Raises ValueError or OSError that names the file and the field for what cannot be read."""
        folder = folder_of(pretrained_model_name_or_path, kwargs.get("subfolder"))
        if folder is not None and not kwargs.keys() & {"gguf_file", "_configuration_file"}:
            read_json(folder / "config.json")  # without one, transformers would make the default configuration
        with naming(_config_file(pretrained_model_name_or_path)):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _finish(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)  # "mistral3" from a foreign config.json must not shadow the class attribute
        warn_of_misspellings(self, kwargs)
        self.validate_rope()  # before the host fills in what is missing
        kwargs.setdefault("auto_map", {})  # read by trainers as `config.auto_map`; not written while empty
        PreTrainedConfig.__post_init__(self, **kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Refuse sizes that cannot work, at construction, at saving and when a model is built."""
        for check in self._checks + HOST_CHECKS:
            if not check.holds(self):
                require(False, check.field, getattr(self, check.field), check.allowed.format(c=self))
        self.validate_rope()

    def _remove_keys_not_serialized(self, d: dict[str, Any]) -> None:
        super()._remove_keys_not_serialized(d)
        if not d.get("auto_map", True):
            del d["auto_map"]


@refusing
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

    _checks = TEXT_CHECKS

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
        for name in IGNORED_TEXT_KEYS:
            kwargs.pop(name, None)
        require(
            kwargs.pop("rope_interleave", True) is not False,
            "rope_interleave",
            False,
            "rotary pairs are interleaved in every Small 4",
        )
        self.rope_parameters = read_rope_parameters(kwargs.pop("rope_scaling", None) or self.rope_parameters, kwargs)
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
        require(yarn or rope["rope_type"] == "default", "rope_parameters['rope_type']", rope["rope_type"], allowed)
        numbers: dict[str, tuple[float, float]] = {"rope_theta": (1.0 + 1e-6 if yarn else 1e-6, 1e30)}
        if yarn:
            numbers |= {"factor": (1, 1e9), "original_max_position_embeddings": (1, 2**40)}
            numbers |= {"beta_fast": (1e-6, 1e9), "beta_slow": (1e-6, 1e9)}
        if rope.get("llama_4_scaling_beta") is not None:
            numbers["llama_4_scaling_beta"] = (0, 1e6)
        for name, (least, most) in numbers.items():
            allowed = f"it must be a number between {least:g} and {most:g}"
            require(is_number(rope.get(name), least, most), f"rope_parameters[{name!r}]", rope.get(name), allowed)
        truncate = rope.get("truncate", True)
        require(isinstance(truncate, bool), "rope_parameters['truncate']", truncate, "it must be true or false")


@refusing
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

    _checks = VISION_CHECKS

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
        legacy = kwargs.pop("rope_scaling", None)
        given = legacy if self.rope_parameters is None else self.rope_parameters
        require(given is None or isinstance(given, dict), "vision rope_parameters", given, "it must be an object")
        rope = dict(given or {})
        theta = kwargs.pop("rope_theta", None)
        theta = rope.get("rope_theta", 10000.0 if theta is None else theta)
        share = rope.get("partial_rotary_factor", kwargs.pop("partial_rotary_factor", None))
        require(share in (None, 1), "vision partial_rotary_factor", share, "it must be 1: whole heads are rotated")
        self.rope_parameters = {"rope_type": rope.get("rope_type", rope.get("type", "axial")), "rope_theta": theta}
        self._finish(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def validate_rope(self) -> None:
        """Only 2-D ("axial") rotary positions exist for the tower."""
        rope = self.rope_parameters
        ok = rope["rope_type"] in ("axial", "default")
        require(ok, "vision rope_parameters['rope_type']", rope["rope_type"], "it must be 'axial'")
        theta, allowed = rope["rope_theta"], "it must be a positive number of at most 1e30"
        require(is_number(theta, 1e-6, 1e30), "vision rope_parameters['rope_theta']", theta, allowed)


@refusing
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

    _checks = MODEL_CHECKS

    text_config: Any = None
    vision_config: Any = field(default_factory=dict)
    image_token_index: int = 10
    spatial_merge_size: int = 2
    vision_feature_layer: int = -1
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = sub_config(self.text_config, "text_config", ("small4_text", "mistral4"))
        self.vision_config = sub_config(self.vision_config, "vision_config", ("small4_vision", "pixtral"))
        text = self.text_config
        inner = (
            text.get("tie_word_embeddings") if isinstance(text, dict) else getattr(text, "tie_word_embeddings", False)
        )
        self.tie_word_embeddings = self.tie_word_embeddings or inner is True
        if "quantization_config" in kwargs:
            kwargs["quantization_config"] = stored_entry(kwargs["quantization_config"])
        self._finish(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers', with the release's own config.json read as Small 4's."""
        config, unused = super().get_config_dict(*args, **kwargs)
        return as_small4(config), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "Small4Config":
        """As transformers', with the release's own dictionary read as Small 4's."""
        if (name := kwargs.get("name_or_path")) is None:
            return super().from_dict(as_small4(config_dict), **kwargs)
        with naming(_config_file(name)):  # transformers' AutoConfig comes this way
            return super().from_dict(as_small4(config_dict), **kwargs)

    def validate_rope(self) -> None:
        """Nothing of its own: the sub-configurations check theirs."""


def _config_file(source: str | os.PathLike[str]) -> str:
    """What a configuration is called in an error: its file in a folder, else what was asked for."""
    return os.path.join(source, "config.json") if os.path.isdir(source) else str(source)


__all__ = ["Small4Config", "Small4TextConfig", "Small4VisionConfig"]
