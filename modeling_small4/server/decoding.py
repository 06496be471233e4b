"""The forward passes of the server: prompts read piece by piece, and running answers taken one token further together.

Knows nothing of queues, of threads, or of who waits for an answer.
"""

import time
from dataclasses import dataclass

import torch

from ..cache import LatentCache
from ..configuration_small4 import Small4Config
from ..drafts_decoding import finished
from ..drafts_loading import drafting_for
from ..drafts_sources import Drafting
from ..generation_grammar import GrammarProcessor, GrammarRow
from ..modeling_small4 import Small4ForCausalLM
from ..reasoning import ARGS, END_THINK, THINK, TOOL_CALLS
from ..tokenization_small4 import Small4Tokenizer
from .drafting import DraftedAnswer
from .jobs import Job
from .prefixes import PrefixStore
from .ragged import RaggedBatch
from .reading import Reader
from .sampling import Reported, Sampler, Thought


@dataclass
class Answer:
    """An answer that is being generated. `ids`: what the prompt holds of it, and what was generated."""

    job: Job
    index: int
    cache: LatentCache
    sampler: Sampler
    reader: Reader
    grammar: GrammarProcessor | None
    ids: list[int]
    tokens: int = 0
    drafted: DraftedAnswer | None = None


@dataclass
class Reading:
    """A prompt that is being read; `done` of its tokens are in the cache."""

    job: Job
    cache: LatentCache
    embeds: torch.Tensor
    done: int
    drafting: Drafting | None = None
    seconds: float = 0.0  # taken so far


class Decoder:
    """A model and its tokenizer, with the prefixes of prompts that were read before.

    Args:
        draft: of `generate`, for answers that run alone; None for none.
    """

    def __init__(
        self, model: Small4ForCausalLM, tokenizer: Small4Tokenizer, prefixes: PrefixStore, draft: str | None = None
    ) -> None:
        self.model, self.tokenizer, self.prefixes, self.draft = model, tokenizer, prefixes, draft
        if draft is not None:
            drafting_for(model, draft)  # loads it, or says why it cannot
        self.eos = _eos_of(model, tokenizer)
        self._closed = {flag: self._closed_ids(flag) for flag in (False, True)}

    def begin(self, job: Job) -> Reading:
        """Takes the longest known prefix of the prompt from the store, and embeds the rest."""
        prompt, cache = job.prompt, LatentCache(self.model.config)
        job.cached = self.prefixes.take(prompt.key, cache)
        for start, stop in prompt.images:
            if start < job.cached < stop:  # an image is embedded as a whole
                cache.crop(start - job.cached)
                job.cached = start
        ids = torch.tensor([prompt.ids[job.cached :]], device=self.model.device)
        embeds = self.model.get_input_embeddings()(ids)
        first = sum(stop <= job.cached for _, stop in prompt.images)
        if prompt.pixel_values is not None and prompt.image_sizes is not None and first < len(prompt.images):
            embeds = self._with_images(ids, embeds, prompt.pixel_values[first:], prompt.image_sizes[first:])
        alone = self.draft is not None and job.answers == 1
        return Reading(job, cache, embeds, job.cached, drafting_for(self.model, self.draft) if alone else None)

    def _with_images(
        self, ids: torch.Tensor, embeds: torch.Tensor, pixels: torch.Tensor, sizes: torch.Tensor
    ) -> torch.Tensor:
        height, width = sizes.amax(dim=0).tolist()
        pixels = pixels[..., :height, :width].to(embeds.device, embeds.dtype)
        features = self.model.get_image_features(pixels, sizes, return_dict=True).pooler_output
        places = (ids == self.model.config.image_token_index)[..., None]
        return embeds.masked_scatter(places, torch.cat(list(features)).to(embeds.device, embeds.dtype))

    def read(self, reading: Reading, most: int) -> torch.Tensor:
        """Reads at most that many more tokens. Returns the logits `[vocabulary]` after the last one."""
        begin = reading.done - reading.job.cached
        embeds = reading.embeds[:, begin : begin + most]
        view = None if reading.drafting is None else reading.drafting.view
        given = {} if view is None else {"draft_view": view}
        started = time.perf_counter()
        logits = self.model(inputs_embeds=embeds, cache=reading.cache, use_cache=True, logits_to_keep=1, **given).logits
        reading.seconds += finished(logits) - started
        reading.done += embeds.shape[1]
        return logits[0, -1].float().cpu()

    def new_answers(self, reading: Reading) -> list[Answer]:
        """The answers of a prompt that has been read, each with a cache of its own."""
        self.prefixes.keep(reading.job.prompt.key, reading.cache)
        copies = (_copied(reading.cache, self.model.config) for _ in range(reading.job.answers - 1))
        answers = [self._new_answer(reading.job, index, cache) for index, cache in enumerate([reading.cache, *copies])]
        if reading.drafting is not None:
            prompt = reading.job.prompt
            before = prompt.ids[: len(prompt.ids) - prompt.begun]
            reading.drafting.begin(1, reading.done - reading.job.cached, reading.seconds)
            answers[0].drafted = DraftedAnswer(reading.drafting, before, reading.cache)
        return answers

    def _new_answer(self, job: Job, index: int, cache: LatentCache) -> Answer:
        known, ids = self.tokenizer.control_ids, job.prompt.ids
        think, end_think = known.get(THINK), known.get(END_THINK)
        begun = ids[len(ids) - job.prompt.begun :]
        thought = Thought("none" if job.raw else job.mode, job.budget, think, end_think, begun)
        sampler = Sampler(job.sampling, thought, ids, self._closed[job.calls and not job.raw], self.eos, index)
        reader = Reader(self.tokenizer.control_tokens, self.tokenizer.token_bytes, self.eos, job.stops, begun, job.raw)
        grammar = None
        if job.grammar is not None:
            opens = {"high": True, "none": False, None: None}[job.mode]
            row = GrammarRow(job.grammar, 0, opens, begun)
            grammar = GrammarProcessor([row], self.tokenizer.grammar_vocabulary, think, end_think, sorted(self.eos))
            grammar.limit = len(begun) + job.most
        return Answer(job, index, cache, sampler, reader, grammar, list(begun))

    def forward(self, running: list[Answer]) -> torch.Tensor:
        """Logits `[answers, vocabulary]` after the last token of each answer."""
        device = self.model.device
        if len(running) == 1 and (drafted := running[0].drafted) is not None:
            return drafted.forward(self.model, running[0].ids, running[0].job.most - running[0].tokens - 1)[None]
        for answer in running:  # together with others it goes on plainly
            if answer.drafted is not None:
                answer.drafted.settle()
                answer.drafted = None
        last = torch.tensor([[answer.ids[-1] for answer in running]], device=device)
        if len(running) == 1:
            return self.model(input_ids=last, cache=running[0].cache, use_cache=True).logits[0]
        places = torch.tensor([[int(answer.cache.get_seq_length()) for answer in running]], device=device)
        batch = RaggedBatch([answer.cache for answer in running], self.model.config.get_text_config().kv_lora_rank)
        return self.model(input_ids=last, position_ids=places, cache=batch, use_cache=True).logits[0]

    def choose(self, answer: Answer, logits: torch.Tensor) -> tuple[int, Reported | None]:
        """Adds an answer's next token to it. Returns the token, and its log-probabilities if they were asked for."""
        allowed = None
        if answer.grammar is not None:
            allowed = answer.grammar(torch.tensor([answer.ids], dtype=torch.long), torch.zeros_like(logits)[None])[0]
        token, report = answer.sampler.choose(logits, allowed)
        answer.ids.append(token)
        answer.tokens += 1
        return token, report

    def keep(self, answer: Answer) -> None:
        """Stores the cache of a finished answer, for prompts that continue it."""
        if answer.drafted is not None:
            answer.drafted.settle()
        generated = answer.ids[answer.job.prompt.begun :]
        self.prefixes.keep([*answer.job.prompt.key, *generated], answer.cache)

    def _closed_ids(self, calls: bool) -> torch.Tensor:
        """Ids that an answer never contains: special tokens without a meaning there, and ids beyond the tokenizer's."""
        known = self.tokenizer.control_ids
        useful = {THINK, END_THINK, *((TOOL_CALLS, ARGS) if calls else ())}
        closed = {index for token, index in known.items() if token not in useful} - self.eos
        size = self.model.config.get_text_config().vocab_size
        closed = {index for index in closed if index < size} | set(range(len(self.tokenizer), size))
        return torch.tensor(sorted(closed), dtype=torch.long)


def _copied(cache: LatentCache, config: Small4Config) -> LatentCache:
    out = LatentCache(config)
    for mine, theirs in zip(out.layers, cache.layers, strict=True):
        mine.device, mine.length = theirs.device, theirs.length
        mine.stores = [store.clone() for store in theirs.stores]
    return out


def _eos_of(model: Small4ForCausalLM, tokenizer: Small4Tokenizer) -> set[int]:
    eos = model.generation_config.eos_token_id
    found = {eos} if isinstance(eos, int) else set(eos or ())
    return found | {tokenizer.eos_token_id}
