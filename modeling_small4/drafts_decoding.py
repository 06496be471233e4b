"""Decoding with drafts: transformers' sampling loop, in which a forward also reads tokens drafted behind the last one.

Each token is chosen from the model's own scores, by the same processors, in the same order and with the same random
numbers as without a draft. As long as the choice is what was drafted, the scores behind it are there already and no
forward is needed. So answers do not depend on the draft, sampled ones included, and every token passes the stopping
criteria and the streamer alone. Must not know: how drafts are made.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.candidate_generator import _prepare_attention_mask, _prepare_position_ids
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .drafts_sources import Drafting


class Choosing:
    """What is generated so far, token by token, exactly as transformers' loop does it.

    Attributes:
        ids: Prompts and answers `[rows, length]`.
        going: 1 for rows that go on, `[rows]`.
    """

    def __init__(
        self,
        ids: torch.Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        settings: GenerationConfig,
        streamer: BaseStreamer | None,
    ) -> None:
        self.ids, self.processors, self.criteria, self.settings = ids, processors, criteria, settings
        self.streamer, self.going = streamer, torch.ones(ids.shape[0], dtype=torch.long, device=ids.device)
        recorded = settings.return_dict_in_generate
        self.scores: tuple[torch.Tensor, ...] | None = () if recorded and settings.output_scores else None
        self.logits: tuple[torch.Tensor, ...] | None = () if recorded and settings.output_logits else None
        self.pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each row `[rows]`, which is appended. logits: `[rows, vocabulary]`."""
        logits = logits.to(copy=True, dtype=torch.float32, device=self.ids.device)
        scores = self.processors(self.ids, logits)
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (logits,)
        if self.settings.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        if self.pads:
            pad = self.settings._pad_token_tensor.to(self.ids.device)
            tokens = tokens * self.going + pad * (1 - self.going)
        self.ids = torch.cat((self.ids, tokens[:, None]), dim=-1)
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())
        self.going = self.going & ~self.criteria(self.ids, self.scores)
        return tokens

    def choose_along(self, logits: torch.Tensor, draft: torch.Tensor) -> int:
        """Choose tokens as long as all rows that go on choose what was drafted.

        Args:
            logits: Behind the last token and each drafted one, `[rows, drafted + 1, vocabulary]`.
            draft: `[rows, drafted]`.

        Returns:
            How many tokens were chosen, at least 1.
        """
        for place in range(logits.shape[1]):
            before = self.going
            tokens = self.choose(logits[:, place])
            if place == draft.shape[1] or not bool(self.going.any()):
                break
            if not bool(((tokens == draft[:, place]) | (before == 0)).all()):
                break
        return place + 1


@torch.no_grad()
def decode_with_drafts(
    model: PreTrainedModel,
    ids: torch.Tensor,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    settings: GenerationConfig,
    streamer: BaseStreamer | None,
    drafting: Drafting,
    inputs: dict[str, Any],
) -> torch.Tensor | GenerateDecoderOnlyOutput:
    """What transformers' `_sample` returns for these arguments.

    Args:
        inputs: The model's keyword arguments, with a cache that can be cropped.
    """
    chosen = Choosing(ids, processors, criteria, settings, streamer)
    if drafting.view is not None:
        inputs["draft_view"] = drafting.view
    begin = time.perf_counter()
    output = model._prefill(ids, settings, inputs)
    drafting.begin(ids.shape[0], ids.shape[1], finished(output.logits) - begin)
    logits, draft = output.logits[:, -1:], ids.new_empty((ids.shape[0], 0))
    compiled = model._valid_auto_compile_criteria(inputs, settings)
    forward: Callable = model.get_compiled_call(settings.compile_config) if compiled else model.__call__
    with model._optimize_model_for_decode():
        while True:
            taken = chosen.choose_along(logits, draft)
            inputs = model._update_model_kwargs_for_generation(output, inputs, num_new_tokens=taken)
            wrong = draft.shape[1] + 1 - taken if draft.shape[1] else 0
            if wrong:
                inputs["cache"].crop(-wrong)
            drafting.checked(taken - 1, wrong)
            if not bool(chosen.going.any()):
                break
            room = (settings.max_length or chosen.ids.shape[1]) - chosen.ids.shape[1] - 1
            draft = drafting.draft(chosen.ids, inputs.get("attention_mask"), chosen.going, room)
            read = _reading(model, chosen.ids, draft, inputs)
            tokens, costs = ids.shape[0] * (draft.shape[1] + 1), drafting.pace.costs
            if count := not compiled and costs.wants_count(tokens):
                read["output_router_logits"] = True
            begin = time.perf_counter()
            output = forward(**read, return_dict=True)
            logits = output.logits
            drafting.read(finished(logits) - begin)
            if count:
                costs.note_experts(tokens, _experts_read(model, output.router_logits))
    if streamer is not None:
        streamer.end()
    if not settings.return_dict_in_generate:
        return chosen.ids
    return GenerateDecoderOnlyOutput(
        sequences=chosen.ids, scores=chosen.scores, logits=chosen.logits, cache=inputs.get("cache")
    )


def finished(logits: torch.Tensor) -> float:
    """The time at which these were computed, in seconds."""
    if logits.device.type != "cpu":
        torch.accelerator.synchronize(logits.device)
    return time.perf_counter()


def _experts_read(model: PreTrainedModel, router_logits: tuple[torch.Tensor, ...] | None) -> float:
    """Different experts chosen by the tokens of a forward, in all layers together. Each `[tokens, experts]`."""
    chosen = model.config.get_text_config().num_experts_per_tok
    return float(sum(logits.topk(chosen).indices.unique().numel() for logits in router_logits or ()))


def _reading(model: PreTrainedModel, ids: torch.Tensor, draft: torch.Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward over the last token and the draft behind it."""
    length, drafted = ids.shape[1], draft.shape[1]
    if drafted:
        ids = torch.cat((ids, draft), dim=1)
        inputs = dict(inputs)
        if (mask := inputs.get("attention_mask")) is not None:
            inputs = _prepare_attention_mask(inputs, mask.shape[1] + drafted, False)
        if (positions := inputs.get("position_ids")) is not None:
            inputs = _prepare_position_ids(inputs, positions.shape[-1] + drafted, False)
    out = model.prepare_inputs_for_generation(ids, next_sequence_length=drafted + 1, **inputs)
    if "logits_to_keep" in out:
        out["logits_to_keep"] = drafted + 1
    assert out["input_ids"].shape[1] == drafted + 1, length
    return out
