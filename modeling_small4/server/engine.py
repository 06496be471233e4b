"""Decoding for the server: one thread that reads prompts chunk by chunk and takes all running answers one token further
at a time.

Requests come in as `Job`s from other threads and get `Event`s back. Knows nothing of HTTP, of messages, or of the API's
fields.
"""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cache import LatentCache
from ..generation_grammar import GrammarProcessor, GrammarRow
from ..grammar import Grammar
from ..reasoning import ARGS, END_THINK, THINK, TOOL_CALLS
from .prefixes import PrefixStore
from .ragged import RaggedBatch
from .reading import Delta, Reader
from .sampling import Reported, Sampler, Sampling, Thought

CHUNK = 1024  # tokens of prompts read between two steps of the running answers


@dataclass(frozen=True)
class Prompt:
    """What the model reads.

    Attributes:
        ids: its tokens. key: the same, but those of images stand for what they show.
        begun: how many of the last ids are the beginning of the answer.
        images: for each image where its tokens begin and end. pixel_values, image_sizes: as the processor makes them.
    """

    ids: list[int]
    key: list[int]
    begun: int = 0
    images: list[tuple[int, int]] = field(default_factory=list)
    pixel_values: torch.Tensor | None = None
    image_sizes: torch.Tensor | None = None


@dataclass(frozen=True)
class Finish:
    """The end of one answer: `reason` is "stop", "length" or "tool_calls"."""

    reason: str
    reader: Reader
    tokens: int


@dataclass(frozen=True)
class Event:
    """What happened to one answer of a job: pieces of it, its end, or (for the job as a whole) that it failed."""

    answer: int = 0
    deltas: list[Delta] = field(default_factory=list)
    finish: Finish | None = None
    failure: str | None = None


@dataclass
class Job:
    """One request.

    Attributes:
        tell: called in the engine's thread with each event.
        mode: "none", "high", or None where the model is free to think. budget: most tokens of thought.
        calls: whether tool calls may be made. raw: for text that is no chat.
        cached: tokens of the prompt that did not have to be read, once it has been.
        cancelled: set it to have the job dropped within a token.
    """

    prompt: Prompt
    tell: Callable[[Event], None]
    sampling: Sampling
    most: int
    answers: int = 1
    stops: list[str] = field(default_factory=list)
    mode: str | None = None
    budget: int | None = None
    grammar: Grammar | None = None
    calls: bool = False
    raw: bool = False
    cached: int = 0
    cancelled: bool = False


class QueueFullError(Exception):
    """As many requests wait as are allowed to."""


@dataclass
class _Answer:
    """One answer in the making; `ids` are what the prompt holds of it and what was generated."""

    job: Job
    index: int
    cache: LatentCache
    sampler: Sampler
    reader: Reader
    grammar: GrammarProcessor | None
    ids: list[int]
    tokens: int = 0


@dataclass
class _Reading:
    """A prompt in the reading: `done` tokens are in the cache."""

    job: Job
    cache: LatentCache
    embeds: torch.Tensor
    done: int


@dataclass
class Counts:
    """For `/metrics`; written by the engine's thread alone."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    recent: deque[tuple[float, int]] = field(default_factory=deque)

    def generated(self, tokens: int) -> None:
        self.generated_tokens += tokens
        now = time.monotonic()
        self.recent.append((now, tokens))
        while now - self.recent[0][0] > 10:
            self.recent.popleft()

    def rate(self) -> float:
        """Tokens a second, of the last ten."""
        now = time.monotonic()
        return sum(tokens for when, tokens in list(self.recent) if now - when <= 10) / 10


class Engine:
    """
    Args:
        rows: most answers decoded at once.
        waiting: most requests that wait for their turn.
        prefix_bytes: for what was read before; see `PrefixStore`.
    """

    def __init__(
        self, model: Any, tokenizer: Any, rows: int = 32, waiting: int = 256, prefix_bytes: int = 2**31
    ) -> None:
        self.model, self.tokenizer, self.rows, self.waiting = model, tokenizer, rows, waiting
        self.prefixes, self.counts = PrefixStore(prefix_bytes), Counts()
        self.eos = _eos_of(model, tokenizer)
        self._queue: deque[Job] = deque()
        self._reading: _Reading | None = None
        self._running: list[_Answer] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="small4-engine", daemon=True)
        self._closed = {flag: self._closed_ids(flag) for flag in (False, True)}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the token that it is at; jobs that are left fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._running) + (self._reading is not None)

    def submit(self, job: Job) -> None:
        """Puts a job in the queue.

        Raises:
            QueueFullError: There is no room.
        """
        with self._wake:
            if sum(not each.cancelled for each in self._queue) >= self.waiting:
                raise QueueFullError
            self._queue.append(job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Has the job dropped; nothing more is told of it."""
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._stopping or self._queue or self._reading or self._running):
                    self._wake.wait()
                if self._stopping:
                    break
            self._drop_cancelled()
            self._read_prompts()
            self._step()
        left = [
            *self._queue,
            *(answer.job for answer in self._running),
            *([self._reading.job] if self._reading else []),
        ]
        for job in {id(job): job for job in left}.values():
            self._tell(job, Event(failure="The server is shutting down."))

    def _drop_cancelled(self) -> None:
        with self._wake:
            for job in [job for job in self._queue if job.cancelled]:
                self._queue.remove(job)
                self._count("cancelled")
        if self._reading is not None and self._reading.job.cancelled:
            self._reading = None
            self._count("cancelled")
        for answer in [answer for answer in self._running if answer.job.cancelled]:
            self._running.remove(answer)
            self._count("cancelled")

    def _read_prompts(self) -> None:
        """Reads up to `CHUNK` tokens of prompts, of as many jobs as there is room for."""
        left = CHUNK
        while left > 0:
            if self._reading is None:
                job = self._next()
                if job is None:
                    return
            else:
                job = self._reading.job
            try:
                if self._reading is None:
                    self._reading = self._begin(job)
                left -= self._read(self._reading, left)
            except Exception as error:
                self._reading = None
                self._fail([job], error)

    def _next(self) -> Job | None:
        with self._wake:
            if self._queue and (not self._running or len(self._running) + self._queue[0].answers <= self.rows):
                return self._queue.popleft()
        return None

    def _begin(self, job: Job) -> _Reading:
        """Takes what is known of the prompt, and embeds the rest."""
        prompt, cache = job.prompt, LatentCache(self.model.config)
        job.cached = self.prefixes.take(prompt.key, cache)
        for start, stop in prompt.images:
            if start < job.cached < stop:  # images are embedded whole
                cache.crop(start - job.cached)
                job.cached = start
        self.counts.prompt_tokens += len(prompt.ids)
        self.counts.cached_tokens += job.cached
        ids = torch.tensor([prompt.ids[job.cached :]], device=self.model.device)
        embeds = self.model.get_input_embeddings()(ids)
        first = sum(stop <= job.cached for _, stop in prompt.images)
        if prompt.pixel_values is not None and prompt.image_sizes is not None and first < len(prompt.images):
            embeds = self._with_images(ids, embeds, prompt.pixel_values[first:], prompt.image_sizes[first:])
        return _Reading(job, cache, embeds, job.cached)

    def _with_images(
        self, ids: torch.Tensor, embeds: torch.Tensor, pixels: torch.Tensor, sizes: torch.Tensor
    ) -> torch.Tensor:
        height, width = sizes.amax(dim=0).tolist()
        pixels = pixels[..., :height, :width].to(embeds.device, embeds.dtype)
        features = self.model.get_image_features(pixels, sizes, return_dict=True).pooler_output
        places = (ids == self.model.config.image_token_index)[..., None]
        return embeds.masked_scatter(places, torch.cat(list(features)).to(embeds.device, embeds.dtype))

    def _read(self, reading: _Reading, most: int) -> int:
        """Reads at most so many tokens; the answers begin when all of the prompt is read. Returns how many tokens it
        was.
        """
        begin = reading.done - reading.job.cached
        embeds = reading.embeds[:, begin : begin + most]
        logits = self.model(inputs_embeds=embeds, cache=reading.cache, use_cache=True, logits_to_keep=1).logits
        reading.done += embeds.shape[1]
        if reading.done == len(reading.job.prompt.ids):
            self._reading = None
            self.prefixes.keep(reading.job.prompt.key, reading.cache)
            self._begin_answers(reading.job, reading.cache, logits[0, -1].float().cpu())
        return embeds.shape[1]

    def _begin_answers(self, job: Job, cache: LatentCache, logits: torch.Tensor) -> None:
        caches = [cache, *(_copied(cache, self.model.config) for _ in range(job.answers - 1))]
        for index, own in enumerate(caches):
            answer = self._new_answer(job, index, own)
            self._running.append(answer)
            self._advance(answer, logits)

    def _new_answer(self, job: Job, index: int, cache: LatentCache) -> _Answer:
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
        return _Answer(job, index, cache, sampler, reader, grammar, list(begun))

    def _step(self) -> None:
        """Takes all running answers one token further."""
        if not self._running:
            return
        running = list(self._running)
        try:
            logits = self._forward(running).float().cpu()
        except Exception as error:
            self._fail([answer.job for answer in running], error)
            return
        for answer, row in zip(running, logits, strict=True):
            if answer.job.cancelled:
                continue
            try:
                self._advance(answer, row)
            except Exception as error:
                self._fail([answer.job], error)

    def _forward(self, running: list[_Answer]) -> torch.Tensor:
        """Logits `[answers, vocabulary]` behind each one's last token."""
        device = self.model.device
        last = torch.tensor([[answer.ids[-1] for answer in running]], device=device)
        if len(running) == 1:
            return self.model(input_ids=last, cache=running[0].cache, use_cache=True).logits[0]
        places = torch.tensor([[int(answer.cache.get_seq_length()) for answer in running]], device=device)
        batch = RaggedBatch([answer.cache for answer in running], self.model.config.get_text_config().kv_lora_rank)
        return self.model(input_ids=last, position_ids=places, cache=batch, use_cache=True).logits[0]

    def _advance(self, answer: _Answer, logits: torch.Tensor) -> None:
        """Chooses an answer's next token and tells what became certain by it."""
        allowed = None
        if answer.grammar is not None:
            allowed = answer.grammar(torch.tensor([answer.ids], dtype=torch.long), torch.zeros_like(logits)[None])[0]
        token, report = answer.sampler.choose(logits, allowed)
        answer.ids.append(token)
        answer.tokens += 1
        self.counts.generated(1)
        if token in self.eos:
            self._finish(answer, "stop", ended=True)
            return
        self._read_token(answer, token, report)

    def _read_token(self, answer: _Answer, token: int, report: Reported | None) -> None:
        deltas = answer.reader.feed(token, report)
        if deltas:
            self._tell(answer.job, Event(answer.index, deltas))
        if answer.reader.stopped:
            self._finish(answer, "stop", ended=False)
        elif answer.tokens >= answer.job.most:
            self._finish(answer, "length", ended=False)

    def _finish(self, answer: _Answer, reason: str, ended: bool) -> None:
        deltas = answer.reader.finish(ended)
        if ended and answer.reader.calls and all(call.whole for call in answer.reader.calls):
            reason = "tool_calls"
        self._running.remove(answer)
        generated = answer.ids[answer.job.prompt.begun :]
        self.prefixes.keep([*answer.job.prompt.key, *generated], answer.cache)
        self._count(reason)
        self._tell(answer.job, Event(answer.index, deltas, Finish(reason, answer.reader, answer.tokens)))

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """Drops the jobs. The whole story is for whoever runs the server; the client is told one sentence."""
        print("small4 serve: a request failed", file=sys.stderr)
        traceback.print_exception(error, file=sys.stderr)
        for job in {id(job): job for job in jobs}.values():
            self._running = [answer for answer in self._running if answer.job is not job]
            self._count("failed")
            self._tell(job, Event(failure=_words(error)))
            job.cancelled = True

    def _tell(self, job: Job, event: Event) -> None:
        if not job.cancelled:
            try:
                job.tell(event)
            except RuntimeError:  # whoever listened is gone
                job.cancelled = True

    def _count(self, outcome: str) -> None:
        self.counts.finished[outcome] = self.counts.finished.get(outcome, 0) + 1

    def _closed_ids(self, calls: bool) -> torch.Tensor:
        """Special tokens that mean nothing in an answer, and ids that no text has."""
        known = self.tokenizer.control_ids
        useful = {THINK, END_THINK, *((TOOL_CALLS, ARGS) if calls else ())}
        closed = {index for token, index in known.items() if token not in useful} - self.eos
        size = self.model.config.get_text_config().vocab_size
        closed = {index for index in closed if index < size} | set(range(len(self.tokenizer), size))
        return torch.tensor(sorted(closed), dtype=torch.long)


def _words(error: Exception) -> str:
    """What a client is told; a ValueError's sentence says what was wrong with its request."""
    return str(error) if isinstance(error, ValueError) else "The server failed on this request."


def _copied(cache: LatentCache, config: Any) -> LatentCache:
    out = LatentCache(config)
    for mine, theirs in zip(out.layers, cache.layers, strict=True):
        mine.device, mine.length = theirs.device, theirs.length
        mine.stores = [store.clone() for store in theirs.stores]
    return out


def _eos_of(model: Any, tokenizer: Any) -> set[int]:
    eos = model.generation_config.eos_token_id
    found = {eos} if isinstance(eos, int) else set(eos or ())
    return found | {tokenizer.eos_token_id}
