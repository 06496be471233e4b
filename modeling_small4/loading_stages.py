"""Pipeline parallelism: each process holds some of the decoder's layers and passes its result to the next.

transformers (5.24) cuts models whose base model is the decoder itself (`apply_pipeline_parallelism` reads
`base_model.layers`, and fails with AttributeError where a tower stands beside the decoder). Here the same stages are
cut for Small 4; the first one sees the images. For inference. Must not know: what a layer computes.
"""

import copy
import inspect
import re
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer, PipelineStage
from transformers.modeling_outputs import BaseModelOutputWithPooling, MoeCausalLMOutputWithPast

from .cache import with_cache_name

_INNER = "model.language_model."
_SIGHT = ("vision_tower", "multi_modal_projector")
_IMAGES = ("pixel_values", "image_sizes", "mm_encoder_outputs")
_HEAD_ONLY = ("labels", "logits_to_keep", "output_router_logits")


class Stage(PipelineStage):
    """transformers' stage, with the names of Small 4's tensors."""

    def find_rank_for_key(self, key: str, num_layers: int, base_model_prefix: str) -> int | None:
        """Which process holds the tensor `key`; None for an unknown one."""
        if key.startswith((f"{_INNER}embed_tokens.", *(f"model.{part}." for part in _SIGHT))):
            return 0
        if key.startswith((f"{_INNER}norm.", "lm_head.")):
            return self.pp_size - 1
        if not key.startswith(f"{_INNER}layers."):
            return None
        layer = int(key.split(".")[3])
        ranks = (rank for rank in range(self.pp_size) if layer in range(*self.layer_range_for_rank(rank, num_layers)))
        return next(ranks, None)


def distribute(host: Callable[..., Any], model: PreTrainedModel, config: Any, mesh: Any) -> Any:
    """transformers' `maybe_distribute_model`, `host`, preceded by our own cut into stages where those are asked for.

    Raises:
        ValueError: Stages are asked for a model without a language modeling head, or more of them than it has layers.
    """
    if mesh is None:
        return host(model, config, mesh)
    model._tp_plan, model._ep_plan = _of_this_model(model, model.tp_plan), _of_this_model(model, model.ep_plan)
    if config.pp_size == 1:
        return host(model, config, mesh)
    layers = model.config.get_text_config().num_hidden_layers
    if not hasattr(model, "lm_head"):
        raise ValueError(
            f"pp_size={config.pp_size} needs Small4ForCausalLM; {type(model).__name__} runs with tp_size or fsdp_size."
        )
    if config.pp_size > layers:
        raise ValueError(f"pp_size={config.pp_size} is more than the model's {layers} layers; give at most {layers}.")
    cut(model, Stage(mesh.get_mesh("pp")))
    rest = copy.copy(config)
    rest.pp_size = 1
    model = host(model, rest, mesh)
    model.config.distributed_config = config
    return model


def _of_this_model(model: PreTrainedModel, plan: dict[str, str]) -> dict[str, str]:
    """The rules that name something here; the plan knows every form of Small 4, and transformers warns of each rule
    without use.
    """
    members = chain(model.named_modules(), model.named_parameters())
    names = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in members}
    return {rule: style for rule, style in plan.items() if rule in names}


def cut(model: PreTrainedModel, stage: Stage) -> None:
    """Leave this stage's layers in the model, numbered from 0 as its cache numbers them, and let `forward` pass results
    on.
    """
    base, text, tied = model.model, model.model.language_model, model.config.tie_word_embeddings
    begin, end = stage.layer_range_for_rank(stage.pp_rank, len(text.layers))
    for index, layer in enumerate(text.layers):
        if begin <= index < end:
            layer.self_attn.layer_idx = index - begin
        else:
            text.layers[index] = PipelineIdentityLayer()
    if not stage.pp_is_first_stage:
        if not (tied and stage.pp_is_last_stage):
            text.embed_tokens = PipelineIdentityLayer()
        for part in _SIGHT:
            if hasattr(base, part):
                setattr(base, part, PipelineIdentityLayer())
        base.get_image_features = _sees_nothing
    if not stage.pp_is_last_stage:
        text.norm, model.lm_head = PipelineIdentityLayer(), PipelineIdentityLayer()
        if tied:
            model.all_tied_weights_keys = {}
    object.__setattr__(base, "layers", text.layers)  # where transformers counts them; not a second registration
    model._pp_stage = stage
    model.forward = _passing_on(model, stage, end - begin)


def _sees_nothing(*args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(pooler_output=())


def _passing_on(model: PreTrainedModel, stage: Stage, layers: int) -> Callable[..., Any]:
    """The model's forward on one stage. Every process returns the logits, so that `generate` runs on all of them
    alike.
    """
    original = model.forward
    signature = inspect.signature(original)

    def forward(*args: Any, **kwargs: Any) -> MoeCausalLMOutputWithPast:
        given = dict(signature.bind_partial(*args, **kwargs).arguments)
        given = with_cache_name(given | given.pop("kwargs", {}))
        cache = given.get("cache")
        if isinstance(cache, Cache):
            del cache.layers[layers:]
        weight = next(p for name, p in model.named_parameters() if name.endswith("layernorm.weight"))  # no codes
        where = {"device": weight.device, "dtype": weight.dtype}
        if not stage.pp_is_first_stage:
            received = stage.communicate("recv_forward", shape=_shape(model, given), **where)
            given = {name: value for name, value in given.items() if name not in ("input_ids", *_IMAGES)}
            given["inputs_embeds"] = received
        logits = None
        if stage.pp_is_last_stage:
            output = original(**given)
            logits = output.logits
        else:
            output = model.model(**{name: value for name, value in given.items() if name not in _HEAD_ONLY})
            stage.communicate("send_forward", tensor=output.last_hidden_state, **where)
        return MoeCausalLMOutputWithPast(logits=stage.broadcast_from_last(logits, **where), cache=output.cache)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


def _shape(model: PreTrainedModel, given: dict[str, Any]) -> tuple[int, ...]:
    """Of the hidden states that the previous stage sends."""
    embeds: torch.Tensor | None = given.get("inputs_embeds")
    rows = embeds.shape[:2] if embeds is not None else given["input_ids"].shape[:2]
    return (*rows, model.config.get_text_config().hidden_size)
