"""`generate` with `reasoning_mode` and `max_thinking_tokens`, as a mixin over transformers' own.

It changes the prompt the model reads and adds one logits processor; the decoding itself is transformers'. Whatever the
caller sees (returned sequences, streamer, own processors and criteria, lengths) stays in terms of the caller's prompt.
Must not know: the model's layers, how prompts are worded.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from .attention_paged import LatentBatchingManager
from .files_reading import shown
from .forward_checks import check_prompt
from .generation_batching import continuous_batching_for, generate_many
from .generation_call import GenerateCall, Modes
from .generation_grammar import GrammarProcessor, GrammarRow
from .generation_hooks import Small4PrefillMixin, refuse_draft
from .generation_presets import check_preset, for_latency
from .generation_prompt import Prompt, ReasoningIds, RewrittenPrompt
from .generation_thinking import ThinkingProcessor
from .reasoning import check_reasoning_mode

PrefixFn = Callable[[int, torch.Tensor], list[int]]


class Small4GenerationMixin(Small4PrefillMixin, GenerationMixin):
    """Adds the reasoning arguments to `generate`; without them it is transformers' `generate` untouched."""

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        prefix_allowed_tokens_fn: PrefixFn | None = None,
        *,
        reasoning_mode: Modes = None,
        max_thinking_tokens: int | None = None,
        preset: str | None = None,
        grammar: object = None,
        draft: object = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`, with five more arguments.

        Args:
            reasoning_mode: "none" or "high", or a list with one of them for each row. The prompt's model-settings block
                is made to say so (rewritten or inserted, the batch re-padded on the left), and decoding follows it:
                "none" opens no `[THINK]`, "high" thinks first. Left out: `generation_config.reasoning_mode`, else the
                prompt's own settings stand and decoding is free.
            max_thinking_tokens: most tokens between `[THINK]` and `[/THINK]`, those already in the prompt counted;
                then `[/THINK]` is forced and the answer follows. Without a mode, the prompt's own mode applies.
            preset: "latency" answers one prompt as soon as it can (see `presets`), "throughput" many prompts in as
                little time as it can (see `batching`). Greedy answers are those of a plain call.
            grammar: what each answer must look like, from its first token or, where it thinks, from the end of the
                thought on: a JSON schema (dict or pydantic class), `re.compile(...)`, a list of choices, an EBNF text,
                    a `Grammar`, or a dict
                `{"json_schema" | "regex" | "ebnf" | "choices" | "tools": ...}`; or a list with one of them, or None,
                for each row. Where tokens run out, the answer is closed in time. The prompt's own mode applies. Needs
                the extra `grammar`, and the tokens' texts: of `tokenizer`, else of the folder that the model was loaded
                from.
            draft: what drafts tokens for the model to check several in one step: a folder or Hub name of an EAGLE
                draft (official layout or ours), a DFlash draft or a small model of the same vocabulary, one loaded, or
                "prompt_lookup". Answers are those of a plain call, sampled ones too; as many tokens are drafted as
                pay. Not with beams.
            kwargs: everything else `generate` takes; `tokenizer` (a processor will do) also supplies the control ids
                where the checkpoint's generation_config has no `reasoning_token_ids`.

        Returns:
            What `generate` returns. Sequences [rows, length] begin with the ids that were passed in, also where the
            model read a rewritten prompt; attentions, hidden states and the cache belong to what it read, and a call
            that goes on from the sequences with that cache is understood. With `inputs_embeds` there are no ids to
            rewrite: the mode governs decoding alone.

        Raises:
            ValueError: ids, embeddings or a mask of another shape, dtype or range, a mode or budget that is not
                allowed, a prompt that is no chat prompt, a mode that contradicts
                a filled cache, unknown control ids, or continuous batching, which supports neither argument. A preset
                that does not exist, or one beside arguments that contradict it. A grammar that is wrong, impossible or
                cannot be enforced, with the path of what is wrong in a schema.
        """
        given = {"inputs": inputs, "generation_config": generation_config, "logits_processor": logits_processor}
        given |= {"stopping_criteria": stopping_criteria, "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn}
        given |= {"reasoning_mode": reasoning_mode, "max_thinking_tokens": max_thinking_tokens, "preset": preset}
        given |= {"grammar": grammar, "draft": draft}
        check_prompt(kwargs | given, self.get_input_embeddings(), self.config.get_text_config().hidden_size)
        call = GenerateCall.of(kwargs | given, self.generation_config)
        # An assistant's drafts are governed by the processor, and the preset, of the model it drafts for.
        if getattr(generation_config, "is_assistant", False):
            return super().generate(**call.arguments)
        if call.get("assistant_early_exit") is not None:
            raise ValueError(
                f"assistant_early_exit={shown(call.get('assistant_early_exit'))} is not supported: no Small 4 is "
                "trained to answer from a layer in its middle. "
                'Pass assistant_model=..., prompt_lookup_num_tokens=..., or preset="latency".'
            )
        check_preset(call.preset)
        if call.arguments.get("draft") is not None:
            refuse_draft(call)
            from .drafts_loading import drafting_for  # it knows the model's class, which knows this one

            call.arguments["draft"] = drafting_for(self, call.arguments["draft"])
        else:
            call.arguments.pop("draft", None)
        if call.preset == "throughput":
            return generate_many(self, call, self._generate)
        if call.preset == "latency":
            call.arguments |= for_latency(call)
        return self._generate(call)

    def _generate(self, call: GenerateCall) -> Any:
        """One plain `generate` of transformers, with the reasoning arguments."""
        record = call.rewrite_in_cache()
        if not call.ruled and record is None:
            return super().generate(**call.arguments)
        if call.arguments.get("cache_implementation") == "paged":
            _refuse_continuous_batching(call)
        _check_budget(call.budget)
        if call.grammars is not None and call.arguments.get("tokenizer") is None:
            call.arguments["tokenizer"] = self._own_tokenizer()
        rewritten = _prepare(call, record)
        result = super().generate(**call.arguments)
        if rewritten is None:
            return result
        call.keep(record or rewritten, result)
        return _as_caller(result, rewritten)

    def _own_tokenizer(self) -> Any:
        """The tokenizer of the folder or repository that the model was loaded from.

        Raises:
            ValueError: There is none.
        """
        if "_tokenizer_for_grammars" not in self.__dict__:
            from .tokenization_small4 import Small4Tokenizer

            try:
                tokenizer = Small4Tokenizer.from_pretrained(self.name_or_path)
            except (OSError, ValueError):
                raise ValueError("A grammar needs the tokens' texts; pass tokenizer=... to generate.") from None
            self.__dict__["_tokenizer_for_grammars"] = tokenizer
        return self.__dict__["_tokenizer_for_grammars"]

    def generate_batch(
        self, inputs: Any, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """transformers' continuous batching; it keeps no history of a row, so the reasoning arguments are refused.

        Without a `continuous_batching_config`, room is made for these prompts, where transformers would take most of
        the memory.
        """
        call = GenerateCall.of(kwargs | {"generation_config": generation_config}, self.generation_config)
        _refuse_continuous_batching(call)
        kwargs = {
            name: value
            for name, value in kwargs.items()
            if name not in ("reasoning_mode", "max_thinking_tokens", "grammar")
        }
        if not args and kwargs.get("continuous_batching_config") is None and inputs:
            lengths = [len(row) for row in inputs]
            kwargs["continuous_batching_config"] = continuous_batching_for(lengths, call.get("max_new_tokens"))
        return super().generate_batch(inputs, generation_config, *args, **kwargs)

    def init_continuous_batching(
        self,
        generation_config: GenerationConfig | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        workload_hints: object = None,
    ) -> Any:
        """transformers' manager for continuous batching, holding latents; refused like `generate_batch`."""
        _refuse_continuous_batching(GenerateCall.of({"generation_config": generation_config}, self.generation_config))
        if getattr(self, "_cached_continuous_batching_manager", None) is not None:
            return super().init_continuous_batching(generation_config, continuous_batching_config, workload_hints)
        settings = copy(generation_config or self.generation_config)
        if settings.eos_token_id is None:
            settings.eos_token_id = -1  # no id: such a request runs to its full length
        return LatentBatchingManager(
            self, settings, continuous_batching_config or ContinuousBatchingConfig(), workload_hints
        )


def _prepare(call: GenerateCall, record: RewrittenPrompt | None) -> RewrittenPrompt | None:
    """Edits `call` so that transformers' `generate` does what was asked; returns the rewrite if the prompt changed."""
    ids, mode = _ids_of(call), call.mode
    modes = _modes_of_rows(mode, ids.shape[0])
    known, eos, pad = call.reasoning_ids(), call.eos(), call.get("pad_token_id")
    caller = Prompt.of(ids, call.arguments.get("attention_mask"), pad, eos)
    actual = caller
    if call.arguments.get("inputs_embeds") is None and (mode is not None or record is not None):
        _check_whole(caller, mode, record)
        actual = caller if record is None else _resumed(caller, record)
        wanted = actual.with_modes(modes, known, pad or 0)
        if wanted is not actual and call.cache is not None and (held := int(call.cache.get_seq_length())):
            _refuse_other_mode(held, modes, [known.mode_of(row) for row in actual.ids.tolist()])
        actual = wanted
    rewritten = None if actual is caller else RewrittenPrompt(caller, actual)
    if rewritten is not None:
        _hand_over(call, rewritten)
    if call.ruled:
        rows = actual.ids.tolist()
        starts = [known.answer_start(row, eos) for row in rows]
        ruled = modes if mode is not None else [known.mode_of(row) for row in rows]
        rules: list[LogitsProcessor] = [
            ThinkingProcessor(starts, ruled, call.budget, known.think, known.end_think, eos)
        ]
        if call.grammars is not None:
            rules.append(_grammar_rules(call, rows, starts, ruled, known))
        call.arguments["logits_processor"] = LogitsProcessorList([*(call.arguments["logits_processor"] or []), *rules])
    return rewritten


def _grammar_rules(
    call: GenerateCall, rows: list[list[int]], starts: list[int], modes: list[str | None], known: ReasoningIds
) -> GrammarProcessor:
    """The processor that keeps each row to its grammar; where a prompt is no chat, the answer begins behind it."""
    vocabulary = getattr(call.arguments["tokenizer"], "grammar_vocabulary", None)
    if vocabulary is None:
        raise ValueError("A grammar needs Small4Tokenizer (AutoTokenizer gives it) or Small4Processor as tokenizer=...")
    wanted = []
    for grammar, row, start, mode in zip(call.grammars or (), rows, starts, modes, strict=True):
        chat = known.inst in row or not row
        opens = {"high": True, "none": False, None: None}[mode] if chat else False
        wanted.append(GrammarRow(grammar, start if chat else len(row), opens, row[start:] if chat else []))
    return GrammarProcessor(wanted, vocabulary, known.think, known.end_think, call.eos())


def _hand_over(call: GenerateCall, rewritten: RewrittenPrompt) -> None:
    """Puts the rewritten prompt into `call`, and translates whatever in it is meant for the caller's own."""
    arguments = call.arguments
    if arguments.get("position_ids") is not None:
        raise ValueError(
            "position_ids were passed with a reasoning_mode that changes the prompt's ids, so they no longer fit. "
            "Leave "
            "them out (generate derives them from attention_mask), or put the mode into the prompt yourself."
        )
    call.set_prompt(rewritten.actual.ids, rewritten.actual.mask)
    call.shift_lengths(rewritten.added)
    if (processors := arguments["logits_processor"]) is not None:
        arguments["logits_processor"] = [_CallersProcessor(each, rewritten) for each in processors]
    if (criteria := arguments["stopping_criteria"]) is not None:
        arguments["stopping_criteria"] = StoppingCriteriaList(_CallersCriterion(each, rewritten) for each in criteria)
    if (streamer := arguments.get("streamer")) is not None:
        arguments["streamer"] = _CallersStreamer(streamer, rewritten)
    if (allowed := arguments["prefix_allowed_tokens_fn"]) is not None:
        beams, returned = call.get("num_beams") or 1, call.get("num_return_sequences") or 1
        repeats = 1 if beams > 1 else returned  # transformers counts beams of one prompt as one batch entry
        arguments["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(
            row, rewritten.row_as_caller(row // repeats, ids)
        )


class _CallersProcessor(LogitsProcessor):
    """A caller's logits processor, shown the caller's prompt."""

    def __init__(self, processor: LogitsProcessor, rewritten: RewrittenPrompt) -> None:
        self.processor, self.rewritten = processor, rewritten

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return self.processor(self.rewritten.as_caller(input_ids), scores)


class _CallersCriterion(StoppingCriteria):
    """A caller's stopping criterion, shown the caller's prompt."""

    def __init__(self, criterion: StoppingCriteria, rewritten: RewrittenPrompt) -> None:
        self.criterion, self.rewritten = criterion, rewritten

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return self.criterion(self.rewritten.as_caller(input_ids), scores, **kwargs)


class _CallersStreamer(BaseStreamer):
    """A caller's streamer: what is put first is the prompt, and it gets its own."""

    def __init__(self, streamer: BaseStreamer, rewritten: RewrittenPrompt) -> None:
        self.streamer, self.rewritten, self.begun = streamer, rewritten, False

    def put(self, value: torch.Tensor) -> None:
        self.streamer.put(value if self.begun else self.rewritten.as_caller(value))
        self.begun = True

    def end(self) -> None:
        self.streamer.end()


def _as_caller(result: Any, rewritten: RewrittenPrompt) -> Any:
    """`generate`'s result with the caller's prompt at the beginning of its sequences."""
    if isinstance(result, torch.Tensor):
        return rewritten.as_caller(result)
    result.sequences = rewritten.as_caller(result.sequences)
    return result


def _resumed(prompt: Prompt, record: RewrittenPrompt) -> Prompt:
    """The prompt as the cache has read its beginning."""
    if record.begins_as_read(prompt):
        return prompt
    resumed = record.as_read(prompt)
    if resumed is None:
        raise ValueError(
            "cache was filled under a rewritten prompt (reasoning_mode), and the ids passed now begin with "
            "neither that prompt nor the one it was made from. Pass the returned sequences with the new tokens behind "
            "them, or start with an empty cache."
        )
    return resumed


def _ids_of(call: GenerateCall) -> torch.Tensor:
    """The prompt's ids; [batch, 0] for a prompt of embeddings alone."""
    if call.ids is not None:
        return call.ids
    embeds = call.arguments.get("inputs_embeds")
    if embeds is None:
        raise ValueError("reasoning_mode and max_thinking_tokens need a prompt: pass input_ids or inputs_embeds.")
    return torch.zeros(embeds.shape[0], 0, dtype=torch.long, device=embeds.device)


def _modes_of_rows(mode: Modes, rows: int) -> list[str | None]:
    if mode is None:
        return [None] * rows
    if not isinstance(mode, (list, tuple)):
        return [check_reasoning_mode(mode)] * rows
    if len(mode) != rows:
        raise ValueError(
            f"reasoning_mode lists {len(mode)} modes for a batch of {rows}; give one for each row, or a single string."
        )
    return [check_reasoning_mode(each) for each in mode]


def _check_budget(budget: object) -> None:
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
        raise ValueError(
            f"max_thinking_tokens is {shown(budget)}, but it must be a whole number of tokens, 0 or more; leave it out "
            "for thoughts of any length."
        )


def _check_whole(prompt: Prompt, mode: Modes, record: RewrittenPrompt | None) -> None:
    """New tokens alone do not show what the cached part of the conversation says."""
    if prompt.mask.shape != prompt.ids.shape:
        given = "reasoning_mode was given" if mode is not None else "cache was filled under a reasoning_mode"
        raise ValueError(
            f"{given}, but input_ids [{prompt.ids.shape[1]} tokens] hold only a part of what attention_mask "
            f"[{prompt.mask.shape[1]} tokens] covers, so the prompt's settings cannot be seen. Pass the ids of the "
            f"whole conversation; what cache holds is not computed again."
        )


def _refuse_other_mode(held: int, asked: list[str | None], cached: list[str | None]) -> None:
    """The settings stand at the beginning of a prompt, which a filled cache has read already."""
    row = next((row for row, (new, old) in enumerate(zip(asked, cached, strict=True)) if new != old), 0)
    settings = f"settings for {cached[row]!r}" if cached[row] else "no settings of a mode"
    raise ValueError(
        f"reasoning_mode is {asked[row]!r}, but cache already holds {held} tokens of a prompt with {settings} at its "
        "beginning. Pass "
        f"reasoning_mode={cached[row]!r} to go on with this cache, or the whole conversation with an empty cache to "
        "change the mode."
    )


def _refuse_continuous_batching(call: GenerateCall) -> None:
    if not call.ruled:
        return
    given = {"reasoning_mode": call.mode, "max_thinking_tokens": call.budget}
    named = ", ".join(f"{name}={shown(value)}" for name, value in given.items() if value is not None)
    raise ValueError(
        f"{named} is not possible in continuous batching, which gives logits processors no history. Call generate, or "
        "write the mode into the prompts (processor.apply_chat_template(..., reasoning_mode=...)) and unset these "
        "fields of generation_config."
    )
