"""`generate(preset=...)`: the names, and what "latency" is made of; "throughput" is in `generation_batching`.

"latency" is for one prompt at a time. The cache has its full size from the start. Where transformers compiles (GPUs;
elsewhere when `compile_config` asks for all devices) it is static and the decoding step is compiled. A single greedy
answer is drafted from the text before it, for the model to check several tokens in one step. Must not know: the model's
layers.
"""

from typing import Any

import torch
from transformers.generation.candidate_generator import CandidateGenerator

from .files_reading import shown
from .generation_call import GenerateCall

PRESETS = ("latency", "throughput")
DRAFT = 4  # tokens checked in one step
SHORTEST, LONGEST = 3, 24  # tokens that must have occurred before, in a row, for what followed them to be a draft
LATENT = (None, "dynamic", "latent", "latent_8bit")  # values of `cache_implementation` that go with a preset


def check_preset(preset: object) -> None:
    """Raises ValueError where there is no preset of this name; None is no preset."""
    if preset is None or preset in PRESETS:
        return
    allowed = ", ".join(map(repr, PRESETS))
    raise ValueError(f"preset is {shown(preset)}, but there are only {allowed}; leave it out for a plain call.")


def refuse(preset: str, call: GenerateCall, contradicting: dict[str, str]) -> None:
    """
    Args:
        contradicting: Name of an argument, and what to do about it.

    Raises:
        ValueError: One of the arguments is given, or the cache is off or of a kind of its own.
    """
    for name, remedy in contradicting.items():
        given = call.get(name)
        if given is not None and given is not False:
            raise ValueError(f"preset={shown(preset)} and {name} contradict each other; {remedy}.")
    if call.get("use_cache") is False:
        raise ValueError(f"preset={shown(preset)} and use_cache=False contradict each other; leave one of them out.")
    cache = call.get("cache_implementation")
    if cache not in LATENT:
        raise ValueError(
            f"preset={shown(preset)} makes its own cache, which contradicts cache_implementation={shown(cache)}; "
            'leave one of them out, or take "latent_8bit".'
        )


def for_latency(call: GenerateCall) -> dict[str, Any]:
    """What the preset adds to a call of `generate`."""
    refuse("latency", call, {})
    ids = call.ids
    several = (call.get("num_beams") or 1) > 1 or (call.get("num_return_sequences") or 1) > 1
    single = ids is not None and ids.shape[0] == 1 and not several and not call.get("do_sample")
    helped = call.arguments.get("assistant_model") is not None or call.get("prompt_lookup_num_tokens") is not None
    stops = call.arguments.get("stopping_criteria") or call.get(
        "stop_strings"
    )  # asked after each step, so of one token
    helped = helped or call.arguments.get("draft") is not None
    drafts = single and not helped and not stops and call.arguments.get("inputs_embeds") is None
    return {"preset": "latency", "drafts": drafts}


class PromptDrafts(CandidateGenerator):
    """Drafts what followed the last few tokens where they occurred before.

    A draft has `DRAFT` tokens or none, so that steps come in two shapes only. In a mixture of experts every further
    token brings experts of its own that have to be read, so a wrong draft costs more than in a dense model: after one,
    a longer piece of text must repeat before the next is made.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length, self.repeated, self.drafted = max_length, SHORTEST, False

    def get_candidates(self, input_ids: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Ids `[1, length]`, with a draft behind them where there is one; no scores."""
        room = self.max_length - input_ids.shape[1] - 1
        draft = _continuation(input_ids[0], self.repeated) if room >= DRAFT else None
        self.drafted = draft is not None
        return (input_ids if draft is None else torch.cat((input_ids, draft[None]), dim=1)), None

    def update_candidate_strategy(self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> None:
        if self.drafted:
            self.repeated = SHORTEST if 2 * num_matches >= DRAFT else min(2 * self.repeated, LONGEST)


def _continuation(ids: torch.Tensor, repeated: int) -> torch.Tensor | None:
    """The `DRAFT` tokens behind the last place where the final `repeated` tokens stood before. ids: `[length]`."""
    places = ids.shape[0] - repeated - DRAFT + 1
    if places <= 0:
        return None
    found = torch.ones(places, dtype=torch.bool, device=ids.device)
    for offset in range(repeated):
        found &= ids[offset : offset + places] == ids[ids.shape[0] - repeated + offset]
    starts = found.nonzero()
    if starts.shape[0] == 0:
        return None
    start = int(starts[-1]) + repeated
    return ids[start : start + DRAFT]
