"""`generate(preset="throughput")`: many prompts in one call, at the least cost for all of them together.

Text prompts go through transformers' continuous batching: a request that is done makes room for the next, and no row is
padded. What that cannot do (images, reasoning arguments, beams, custom logits processors, ...) is done in batches of
prompts sorted by length, each cut to its longest. Either way the result is that of one plain call. Must not know: the
model's layers.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from .configuration_small4 import Small4Config
from .generation_call import GenerateCall
from .generation_presets import refuse
from .generation_prompt import Prompt

ROWS = 64  # prompts at work at the same time
TOKENS = 2**18  # and tokens that they may come to
PAGE = 64
PER_PROCESSOR = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"}  # what continuous batching supports
PER_ROW = ("cache", "inputs_embeds", "position_ids", "mm_encoder_outputs", "assistant_model", "streamer")

Run = Callable[[GenerateCall], torch.Tensor]


def generate_many(model: PreTrainedModel, call: GenerateCall, run: Run) -> torch.Tensor:
    """The sequences of all prompts, as `generate` returns them.

    Args:
        call: Its prompts `[rows, length]` are padded on the left.
        run: Answers a plain call.

    Raises:
        ValueError: Arguments that only fit one call with one batch.
    """
    alone = "give it to a plain call, or the prompts without it"
    refuse("throughput", call, {name: alone for name in PER_ROW if name in call.arguments})
    refuse("throughput", call, dict.fromkeys(("return_dict_in_generate", "prompt_lookup_num_tokens"), alone))
    ids = call.ids
    if ids is None or ids.ndim != 2:
        raise ValueError('preset="throughput" needs the prompts as input_ids [rows, length], padded on the left.')
    prompts = Prompt.of(ids, call.arguments.get("attention_mask"), call.get("pad_token_id"), call.eos())
    if prompts.mask.shape != ids.shape or not bool(prompts.mask[:, -1].all()):
        raise ValueError(
            'preset="throughput" needs prompts padded on the left and an attention_mask of their shape '
            f"{list(ids.shape)}."
        )
    settings = None if call.ruled else _continuous(model, call, ids)
    if settings is not None:
        answers = _by_continuous_batching(model, prompts, settings)
    else:
        answers = _by_sorted_batches(model, call, run, prompts)
    return _joined(ids, answers, call)


def continuous_batching_for(lengths: Sequence[int], new: int | None) -> ContinuousBatchingConfig:
    """Pages for up to `ROWS` prompts of these lengths at once, each with `new` tokens behind it."""
    longest = sorted(lengths, reverse=True)[:ROWS]
    pages = sum(-(-(length + (new or 20) + 1) // PAGE) + 1 for length in longest)
    room = pages * PAGE
    tokens = min(1024, max(ROWS, TOKENS * ROWS // room))  # of one step; the mask over them and all pages stays small
    return ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=pages, max_batch_tokens=tokens, max_requests_per_batch=min(ROWS, len(lengths))
    )


def _continuous(model: PreTrainedModel, call: GenerateCall, ids: torch.Tensor) -> GenerationConfig | None:
    """The settings for continuous batching, or None where it could not do what was asked for."""
    known = {"inputs", "input_ids", "attention_mask", "generation_config", "tokenizer", "use_model_defaults"}
    rest = {name: value for name, value in call.arguments.items() if name not in known}
    settings, left = model._prepare_generation_config(call.arguments.get("generation_config"), **rest)
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1 or hasattr(model, "_pp_stage")
    if (
        any(value is not None for value in left.values())
        or spread
        or ids.shape[0] == 1
        or getattr(settings, "latent_cache_bits", 16) != 16
    ):
        return None
    if settings.num_beams != 1 or settings.num_return_sequences != 1 or settings.stop_strings or settings.max_time:
        return None
    if settings.min_length or settings.min_new_tokens or settings.guidance_scale not in (None, 1):
        return None
    processors = model._get_logits_processor(settings, ids.shape[1])
    if {type(processor).__name__ for processor in processors} - PER_PROCESSOR:
        return None
    if settings.max_new_tokens is None:
        explicit = call.get("max_length")
        settings.max_new_tokens = 20 if explicit is None else explicit - ids.shape[1]
    return settings if settings.max_new_tokens > 0 else None


def _by_continuous_batching(model: PreTrainedModel, prompts: Prompt, settings: GenerationConfig) -> list[list[int]]:
    rows = [row[kept.bool()].tolist() for row, kept in zip(prompts.ids, prompts.mask, strict=True)]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    requests = model.generate_batch(
        [rows[row] for row in order],
        generation_config=settings,
        continuous_batching_config=continuous_batching_for([len(row) for row in rows], settings.max_new_tokens),
    )
    errors = [request.error for request in requests.values() if request.error is not None]
    if errors or len(requests) != len(rows):
        raise RuntimeError(
            f"continuous batching failed for {len(rows) - len(requests) + len(errors)} prompts: {errors}"
        )
    answers: list[list[int]] = [[]] * len(rows)
    for row, request in zip(order, requests.values(), strict=True):
        answers[row] = request.generated_tokens
    return answers


def _by_sorted_batches(model: PreTrainedModel, call: GenerateCall, run: Run, prompts: Prompt) -> list[list[int]]:
    returned = call.get("num_return_sequences") or 1
    images = _images_of_rows(model.config, call, prompts.ids)
    answers: list[list[int]] = [[]] * (prompts.ids.shape[0] * returned)
    for rows in _batches(prompts.mask.sum(dim=-1).tolist(), call.get("max_new_tokens") or 0):
        cut = int(prompts.mask[rows].argmax(dim=-1).min())
        part = call.of_rows(dict(call.arguments), rows)
        part.set_prompt(prompts.ids[rows, cut:], prompts.mask[rows, cut:])
        part.shift_lengths(-cut)
        if images is not None:
            chosen = [image for row in rows for image in images[row]]
            for name in ("pixel_values", "image_sizes"):
                values = part.arguments.pop(name)
                if chosen:
                    part.arguments[name] = values[chosen]
        if (allowed := call.arguments.get("prefix_allowed_tokens_fn")) is not None:
            part.arguments["prefix_allowed_tokens_fn"] = lambda row, ids, rows=rows: allowed(rows[row], ids)
        sequences = run(part)[:, prompts.ids.shape[1] - cut :].tolist()
        for index, sequence in enumerate(sequences):
            answers[rows[index // returned] * returned + index % returned] = sequence
    return answers


def _batches(lengths: list[int], new: int) -> Iterator[list[int]]:
    """Rows from the longest on, as many at once as `ROWS` and `TOKENS` allow."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        size = min(ROWS, max(1, TOKENS // (lengths[order[0]] + new)))
        yield order[:size]
        order = order[size:]


def _images_of_rows(config: Small4Config, call: GenerateCall, ids: torch.Tensor) -> list[list[int]] | None:
    """Which images each row shows: they stand in the order of their tokens. None without images."""
    if call.arguments.get("pixel_values") is None:
        return None
    if call.arguments.get("image_sizes") is None:
        raise ValueError(
            'preset="throughput" needs image_sizes beside pixel_values, to tell which row shows which image.'
        )
    unit = config.vision_config.patch_size * config.spatial_merge_size
    tokens = [
        (height // unit) * (width // unit) for height, width in torch.as_tensor(call.arguments["image_sizes"]).tolist()
    ]
    rows: list[list[int]] = []
    image = 0
    for wanted in (ids == config.image_token_index).sum(dim=-1).tolist():
        rows.append([])
        while wanted > 0 and image < len(tokens):
            wanted -= tokens[image]
            rows[-1].append(image)
            image += 1
        if wanted != 0:
            break
    if len(rows) != ids.shape[0] or image != len(tokens) or wanted != 0:
        raise ValueError(
            "The images do not fit the [IMG] ids of the prompts; build both together with Small4Processor."
        )
    return rows


def _joined(ids: torch.Tensor, answers: list[list[int]], call: GenerateCall) -> torch.Tensor:
    """Prompts with their answers behind them, padded to the longest."""
    pad = call.get("pad_token_id")
    if pad is None:
        pad = next(iter(torch.as_tensor(call.get("eos_token_id") or 0).flatten().tolist()))
    width = max(map(len, answers))
    padded = torch.tensor([answer + [pad] * (width - len(answer)) for answer in answers], dtype=ids.dtype).view(
        -1, width
    )
    repeats = len(answers) // ids.shape[0]
    return torch.cat((ids.repeat_interleave(repeats, dim=0), padded.to(ids.device)), dim=1)
