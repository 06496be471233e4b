"""Small 4 for transformers: decoder blocks, text model, vision tower, the full model and its heads. Start reading here.

`Small4ForCausalLM` reads text and, given `pixel_values` and `image_sizes`, images. The rooms behind it: `attention`,
`moe`, `rope`, `vision`, `generation`, `loading`. Nothing here prepares text or images; see `processing_small4`.
"""

from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.masking_utils import create_causal_mask, packed_sequence_mask_function
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils import is_torchdynamo_compiling, logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import Small4Attention, four_dimensional_mask
from .attention_blocks import long_prefill
from .attention_paged import PagedBatch
from .cache import LatentCache, given_cache
from .configuration_small4 import Small4Config, Small4TextConfig, Small4VisionConfig
from .cpu_matmul import linear
from .drafts_view import DraftView
from .forward_checks import (
    IGNORED,
    as_computed,
    check_labels,
    check_mask,
    check_pixels,
    check_positions,
    check_tokens,
    one_row_for_all,
)
from .forward_rules import (
    check_cache,
    counted_positions,
    new_cache_wanted,
    packed_texts,
    warn_beyond_positions,
)
from .generation import Small4GenerationMixin
from .loading import Small4LoadingMixin
from .loss import loss_in_chunks
from .moe import Small4Experts, Small4MLP, Small4MoE, Small4TopkRouter, batch_weight, router_losses
from .rope import Positions, text_positions
from .vision import (
    Small4MultiModalProjector,
    Small4VisionAttention,
    Small4VisionBlocks,
    Small4VisionLayer,
    embed_patches,
    patch_grids,
    patch_positions,
)

logger = logging.get_logger(__name__)


@dataclass
class Small4ModelOutputWithPast(MoeModelOutputWithPast):
    """`MoeModelOutputWithPast` with what became of the images.

    Attributes:
        image_hidden_states: Projected image tokens of all images, `[image tokens, hidden_size]`.
        image_outputs: What `get_image_features` returned, with the tower's hidden states or attentions where they were
            asked for.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@dataclass
class Small4CausalLMOutputWithPast(MoeCausalLMOutputWithPast):
    """`MoeCausalLMOutputWithPast` with what became of the images; see `Small4ModelOutputWithPast`."""

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


class Small4DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: latent attention, then a mixture of experts (or a dense layer in the first
    `first_k_dense_replace`).
    """

    def __init__(self, config: Small4TextConfig, layer_idx: int) -> None:
        super().__init__()
        dense = layer_idx < config.first_k_dense_replace
        self.self_attn = Small4Attention(config, layer_idx)
        self.mlp = Small4MLP(config, config.intermediate_size) if dense else Small4MoE(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: Positions,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """`[batch, length, hidden_size]` to the same. The cache has transformers' name, by which checkpointing takes it
        away.
        """
        cache = kwargs.pop("cache", None)
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), positions, attention_mask, cache, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class Small4PreTrainedModel(Small4LoadingMixin, PreTrainedModel):
    """Weights, loading and what this model supports, for all classes below."""

    config: Small4Config
    base_model_prefix = "model"
    input_modalities: tuple[str, ...] = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Small4DecoderLayer", "Small4VisionLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """transformers would search this file's text for its attention interface, which is used in `attention` and
        `vision`.
        """
        return True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """transformers would search this file's text for its decorator of experts, which is used in `moe`."""
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = getattr(self.config, "initializer_range", None) or self.config.get_text_config().initializer_range
        if isinstance(module, Small4TopkRouter):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, Small4Experts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)


class Small4TextModel(Small4PreTrainedModel):
    """The decoder without a head. Also usable alone, from a `Small4TextConfig`."""

    config: Small4TextConfig
    input_modalities = ("text",)
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": Small4DecoderLayer,
        "attentions": Small4Attention,
        "router_logits": OutputRecorder(Small4TopkRouter, index=0),
    }

    def __init__(self, config: Small4TextConfig) -> None:
        super().__init__(config)
        config.validate_architecture()  # sizes may have been set after the configuration was made
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Small4DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | PagedAttentionCache | PagedBatch | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        draft_view: DraftView | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """
        Args:
            input_ids: int64 `[batch, length]`; or `inputs_embeds` `[batch, length, hidden_size]`, one of the two.
            attention_mask: `[batch, cached + length]`, 0 where padded; or 4-D `[batch, 1, length, cached + length]`,
                bool (True attends) or additive, which then says all, also what is causal.
            position_ids: int64 `[batch, length]`. Without a cache, positions that start anew mark packed texts, which
                do not see one another; no cache is made then. What exactly is taken for packed texts: the table in
                `forward_rules`.
            cache, or past_key_values: Cache to read and extend. None with `use_cache`: a new one, except in training.
            use_cache: Default `config.use_cache`.
            draft_view: Where a draft that reads this model's hidden states finds them; see `drafts_view`.

        Raises:
            ValueError: Both or none of `input_ids` and `inputs_embeds`, a cache under both names, or arguments of
                another shape, dtype or range; see `forward_checks`.
        """
        embedding = getattr(self, "embed_tokens", None)  # a draft reads with that of its model
        check_tokens(input_ids, inputs_embeds, embedding, self.config.hidden_size)
        inputs_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else as_computed(inputs_embeds, embedding)
        batch, length = inputs_embeds.shape[:2]
        check_positions(position_ids, attention_mask, batch, length)
        cache = given_cache(cache, past_key_values)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if (is_causal := kwargs.get("is_causal", getattr(self.config, "is_causal", None))) is not None:
            kwargs["is_causal"] = is_causal  # False: attention in both directions
        attention_mask = one_row_for_all(attention_mask, batch)
        packed = packed_texts(position_ids, attention_mask, cache, batch)
        if cache is None and new_cache_wanted(use_cache, self.training, packed):
            cache = LatentCache(self.config)
        if position_ids is None:
            position_ids = counted_positions(cache, length, inputs_embeds.device)

        if isinstance(cache, PagedAttentionCache):  # continuous batching, which brings its mask
            mask, cache = attention_mask, PagedBatch.of(cache, attention_mask, kwargs)
        elif isinstance(cache, PagedBatch):  # it knows what each of its sequences sees
            mask = None
        else:
            check_mask(attention_mask, cache, batch, length)
            check_cache(cache, batch, self.config.kv_lora_rank + self.config.qk_rope_head_dim)
            self._warn(cache, length, kwargs)
            mask = self._mask(attention_mask, cache, inputs_embeds, packed, kwargs)
        hidden_states, positions = inputs_embeds, text_positions(self.config, position_ids)
        between = []
        for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            hidden_states = layer(
                hidden_states,
                positions,
                attention_mask=mask,
                position_ids=position_ids,
                cache=cache,
                **kwargs,
            )
            if draft_view is not None and index in draft_view.layers:
                between.append(hidden_states)
        hidden_states = self.norm(hidden_states)
        if draft_view is not None:
            if between and self.config.num_hidden_layers - 1 in draft_view.layers:
                between[-1] = hidden_states  # as transformers counts them, behind the norm
            draft_view.show(inputs_embeds, position_ids, torch.cat(between, dim=-1) if between else hidden_states)
        return MoeModelOutputWithPast(
            last_hidden_state=hidden_states, cache=None if isinstance(cache, PagedBatch) else cache
        )

    def _warn(self, cache: Cache | None, length: int, wanted: dict[str, Any]) -> None:
        """Say what is asked for and cannot be had."""
        if is_torchdynamo_compiling():
            return
        kernel = self.config._attn_implementation
        if wanted.get("output_attentions") and "eager" not in str(kernel):
            logger.warning_once(
                f"output_attentions=True, but attn_implementation={kernel!r} gives no attention weights; choose eager: "
                'model.set_attn_implementation("eager").'
            )
        seen, limit = cache.get_seq_length() if cache is not None else 0, self.config.max_position_embeddings
        if isinstance(seen, int) and seen <= limit:  # said once, by the forward that goes beyond
            what = f"{seen + length} tokens are read" + (f", {seen} of them cached" if seen else "")
            warn_beyond_positions(limit, seen + length, what)

    def _mask(
        self,
        given: torch.Tensor | None,
        cache: Cache | None,
        inputs_embeds: torch.Tensor,
        packed: torch.Tensor | None,
        wanted: dict[str, Any],
    ) -> Any:
        """What the attention implementation takes for a mask, or what stands in for one where a long prompt goes block
        by block.
        """
        blocks = long_prefill(self.config, given, cache, inputs_embeds.shape[1], wanted)
        if blocks is not None:
            return blocks
        apart = None if packed is None else packed_sequence_mask_function(packed)
        config, is_causal = self.config, wanted.get("is_causal", True)
        if is_causal != getattr(
            config, "is_causal", True
        ):  # transformers reads it there, and other threads read the model's own
            config = copy(config)
            config.is_causal = is_causal
        mask = create_causal_mask(config, inputs_embeds, given, cache, and_mask_function=apart)
        return four_dimensional_mask(mask, self.config._attn_implementation, inputs_embeds.dtype)


class Small4VisionModel(Small4PreTrainedModel):
    """The Pixtral tower: images to one vector per patch."""

    config: Small4VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _can_record_outputs = {"hidden_states": Small4VisionLayer, "attentions": Small4VisionAttention}  # noqa: RUF012

    def __init__(self, config: Small4VisionConfig) -> None:
        super().__init__(config)
        config.validate_architecture()
        self.patch_conv = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.ln_pre = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.transformer = Small4VisionBlocks(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_conv

    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, image_sizes: Any = None, **kwargs: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[images, channels, height, width]`, padded to the largest image.
            image_sizes: int64 `[images, 2]`, height and width in pixels; None: all of them fill `pixel_values`.

        Returns:
            `last_hidden_state` `[1, patches of all images, hidden_size]`, image after image, row by row.
        """
        check_pixels(pixel_values, image_sizes, self.config.num_channels)
        if image_sizes is None:
            image_sizes = [list(pixel_values.shape[-2:])] * pixel_values.shape[0]
        patch = self.config.patch_size
        grids = patch_grids(image_sizes, pixel_values, patch, patch)
        hidden_states = self.ln_pre(embed_patches(self.patch_conv, pixel_values, grids))
        cos, sin = patch_positions(self.config, grids, hidden_states.device)
        hidden_states = self.transformer(hidden_states, cos, sin, [rows * columns for rows, columns in grids], **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states)


class Small4Model(Small4PreTrainedModel):
    """Decoder, tower and projector without a head: image tokens take the place of `[IMG]` ids."""

    def __init__(self, config: Small4Config) -> None:
        super().__init__(config)
        config.validate_architecture()
        self.language_model = Small4TextModel(config.text_config)
        if config.vision_config is not None:
            self.vision_tower = Small4VisionModel(config.vision_config)
            self.multi_modal_projector = Small4MultiModalProjector(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.language_model.embed_tokens = value

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values, image_sizes: As in `Small4VisionModel.forward`; sides are multiples of
                `patch_size * spatial_merge_size`.

        Returns:
            The tower's output, with `pooler_output` a tuple of one `[image tokens, hidden_size]` per image.

        Raises:
            ValueError: The model has no vision tower, or sizes and pixels do not fit.
        """
        if self.config.vision_config is None:
            raise ValueError(
                "This model is text-only (vision_config is None); leave pixel_values out or load a checkpoint with a "
                "vision tower."
            )
        check_pixels(pixel_values, image_sizes, self.config.vision_config.num_channels)
        if image_sizes is None:
            image_sizes = torch.tensor([pixel_values.shape[-2:]] * pixel_values.shape[0])
        patch, merge, layer = (
            self.config.vision_config.patch_size,
            self.config.spatial_merge_size,
            self.config.vision_feature_layer,
        )
        grids = patch_grids(image_sizes, pixel_values, patch * merge, patch)
        if layer != -1:
            kwargs["output_hidden_states"] = True
        output = self.vision_tower(pixel_values, image_sizes=image_sizes, return_dict=True, **kwargs)
        features = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        tokens = self.multi_modal_projector(features[0], grids)
        output.pooler_output = tokens.split([rows * columns // merge**2 for rows, columns in grids])
        return output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | PagedAttentionCache | PagedBatch | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        image_sizes: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Small4ModelOutputWithPast:
        """Text arguments as in `Small4TextModel.forward`, images as in `get_image_features`.

        Args:
            mm_encoder_outputs: `{"image": output of get_image_features}`, for images encoded before; instead of
                `pixel_values`.

        Raises:
            ValueError: The number of `[IMG]` ids is not that of the image tokens, or arguments exclude each other.
        """
        check_tokens(input_ids, inputs_embeds, self.get_input_embeddings(), self.config.text_config.hidden_size)
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is not None and pixel_values is not None:
            raise ValueError("Give pixel_values or mm_encoder_outputs, not both.")
        if use_cache is None:
            use_cache = getattr(
                self.config, "use_cache", None
            )  # set there by trainers; the text model has its own default
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            recorded = {name: kwargs[name] for name in ("output_hidden_states", "output_attentions") if name in kwargs}
            encoded = self.get_image_features(pixel_values, image_sizes, return_dict=True, **recorded)
        image_tokens = None
        if encoded is not None:
            image_tokens = torch.cat(list(encoded.pooler_output)).to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.masked_scatter(
                self._image_places(input_ids, inputs_embeds, image_tokens), image_tokens
            )
        output = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=given_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return Small4ModelOutputWithPast(**output, image_hidden_states=image_tokens, image_outputs=encoded)

    def _image_places(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, image_tokens: torch.Tensor
    ) -> torch.Tensor:
        """True where an image token goes, bool `[batch, length, 1]`. Without ids, places are those that hold the
        embedding of `[IMG]`.
        """
        if input_ids is not None:
            places = input_ids == self.config.image_token_index
        else:
            marker = torch.tensor(self.config.image_token_index, device=inputs_embeds.device)
            places = (inputs_embeds == self.get_input_embeddings()(marker)).all(-1)
        if not torch.compiler.is_compiling() and (found := int(places.sum())) != image_tokens.shape[0]:
            raise ValueError(
                f"The prompt has {found} [IMG] ids (id {self.config.image_token_index}) for {image_tokens.shape[0]} "
                "image tokens; "
                "build prompt and images together with Small4Processor, and do not cut the prompt inside an image."
            )
        return places[..., None].to(inputs_embeds.device)


class Small4ForCausalLM(Small4PreTrainedModel, Small4GenerationMixin):
    """Small 4 with its language modeling head: text, images, chat and reasoning in one class.

    Attributes:
        loss_chunk: While training on labels, compute so many tokens' logits at a time and return none, to save memory;
            see `loss`. None: all at once, and they are returned.
    """

    loss_chunk: int | None = None
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: Small4Config) -> None:
        super().__init__(config)
        self.model = Small4Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def get_image_features(
        self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See `Small4Model.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_sizes, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | PagedAttentionCache | PagedBatch | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_sizes: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        output_router_logits: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Small4CausalLMOutputWithPast:
        """As `Small4Model.forward`, and:

        Args:
            labels: int64 `[batch, length]`, -100 where no loss is wanted. The loss is next-token cross-entropy, plus
                the balance and z-losses when `output_router_logits` is on. With `num_items_in_batch`, the labels of all
                batches accumulated for one step, each batch weighs as much as it has of them.
            logits_to_keep: Compute logits of the last so many positions only (0: all), or of these indices.
            output_router_logits: Default `config.text_config.output_router_logits`.

        Returns:
            `logits` `[batch, kept, vocab_size]` (None with `loss_chunk`), `loss`, `aux_loss`, `router_logits`, the
            cache under transformers' name for it, ...
        """
        text_config: Small4TextConfig = self.config.text_config
        if output_router_logits is None:
            output_router_logits = text_config.output_router_logits
        check_tokens(input_ids, inputs_embeds, self.get_input_embeddings(), text_config.hidden_size)
        batch, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]  # type: ignore[union-attr]
        if "shift_labels" not in kwargs:
            ignored = kwargs.get("ignore_index", IGNORED)
            check_labels(labels, batch, length, logits_to_keep, text_config.vocab_size, ignored)
        attention_mask = one_row_for_all(attention_mask, batch)
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=given_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            image_sizes=image_sizes,
            mm_encoder_outputs=mm_encoder_outputs,
            output_router_logits=output_router_logits,
            return_dict=True,
            **kwargs,
        )
        chunk = self.loss_chunk if self.training and labels is not None and _all_positions(logits_to_keep) else None
        aux_loss, loss, logits = None, None, None
        if chunk is None:
            logits = linear(self.lm_head, slice_logits_to_keep(output.last_hidden_state, logits_to_keep))
        if output.router_logits:
            aux_loss, router_loss = router_losses(text_config, output.router_logits, attention_mask)
            if self.model.language_model.gradient_checkpointing and self.training and not aux_loss.requires_grad:
                logger.warning_once(
                    "The router losses have no gradient: reentrant checkpointing records router logits without one. "
                    'Enable it with gradient_checkpointing_kwargs={"use_reentrant": False}.'
                )
        if labels is not None:
            if chunk is not None:
                head = partial(linear, self.lm_head)
                loss = loss_in_chunks(head, output.last_hidden_state, labels, chunk, **kwargs)
            else:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=text_config.vocab_size, **kwargs)
            if aux_loss is not None:
                share = batch_weight(labels, kwargs.get("num_items_in_batch"))
                loss = loss + (router_loss * share).to(loss.device)
        return Small4CausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            router_logits=output.router_logits,
            image_hidden_states=output.image_hidden_states,
            image_outputs=output.image_outputs,
            cache=output.cache,
        )


def _all_positions(logits_to_keep: int | torch.Tensor) -> bool:
    return isinstance(logits_to_keep, int) and logits_to_keep == 0


def _ask_for_an_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before the model in a head of transformers, which reads fields of its output, whatever `config.return_dict`
    says.
    """
    return args, {"return_dict": True} | kwargs


class Small4ForSequenceClassification(GenericForSequenceClassification, Small4PreTrainedModel):
    """One label per sequence, read at its last token that is not padding."""

    def __init__(self, config: Small4Config) -> None:
        Small4PreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.num_labels = config.num_labels
        self.model = Small4Model(config)
        self.model.register_forward_pre_hook(_ask_for_an_output, with_kwargs=True)
        self.score = nn.Linear(config.text_config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class Small4ForTokenClassification(GenericForTokenClassification, Small4PreTrainedModel):
    """One label per token."""

    def __init__(self, config: Small4Config) -> None:
        Small4PreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.num_labels = config.num_labels
        self.model = Small4Model(config)
        self.model.register_forward_pre_hook(_ask_for_an_output, with_kwargs=True)
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", None) or 0.0)
        self.score = nn.Linear(config.text_config.hidden_size, config.num_labels)
        self.post_init()


__all__ = [
    "Small4ForCausalLM",
    "Small4ForSequenceClassification",
    "Small4ForTokenClassification",
    "Small4Model",
    "Small4PreTrainedModel",
    "Small4TextModel",
    "Small4VisionModel",
]
