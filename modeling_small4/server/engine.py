"""The server's queue and its one thread, which reads prompts chunk by chunk and takes all running answers one token
further at a time.

Requests come in as `Job`s from other threads and get `Event`s back. Knows nothing of HTTP, of messages, of the API's
fields, or of how the model is called (`decoding`).
"""

import sys
import threading
import traceback
from collections import deque

import torch

from ..modeling_small4 import Small4ForCausalLM
from ..tokenization_small4 import Small4Tokenizer
from .decoding import Answer, Decoder, Reading
from .jobs import Counts, Event, Finish, Job, QueueFullError
from .prefixes import PrefixStore
from .sampling import Reported

CHUNK = 1024  # tokens of prompts read between two steps of the running answers


class Engine:
    """
    Args:
        rows: how many answers are decoded at once.
        waiting: how many requests may wait.
        prefix_bytes: limit of the `PrefixStore`.
        draft: see `Decoder`.
    """

    def __init__(
        self,
        model: Small4ForCausalLM,
        tokenizer: Small4Tokenizer,
        rows: int = 32,
        waiting: int = 256,
        prefix_bytes: int = 2**31,
        draft: str | None = None,
    ) -> None:
        self.rows, self.waiting = rows, waiting
        self.prefixes, self.counts = PrefixStore(prefix_bytes), Counts()
        self.decoder = Decoder(model, tokenizer, self.prefixes, draft)
        self._queue: deque[Job] = deque()
        self._reading: Reading | None = None
        self._running: list[Answer] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="small4-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the current token. Unfinished jobs fail."""
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
        """Cancels the job; it gets no more events."""
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
        """Reads up to `CHUNK` tokens of prompts, from as many jobs as fit."""
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
                    self._reading = self.decoder.begin(job)
                    self.counts.prompt_tokens += len(job.prompt.ids)
                    self.counts.cached_tokens += job.cached
                left -= self._read(self._reading, left)
            except Exception as error:
                self._reading = None
                self._fail([job], error)

    def _next(self) -> Job | None:
        with self._wake:
            if self._queue and (not self._running or len(self._running) + self._queue[0].answers <= self.rows):
                return self._queue.popleft()
        return None

    def _read(self, reading: Reading, most: int) -> int:
        """Reads at most that many tokens and returns how many it read. Its answers start when the whole prompt has been
        read.
        """
        before = reading.done
        logits = self.decoder.read(reading, most)
        if reading.done == len(reading.job.prompt.ids):
            self._reading = None
            for answer in self.decoder.new_answers(reading):
                self._running.append(answer)
                self._advance(answer, logits)
        return reading.done - before

    def _step(self) -> None:
        """Generates one token of every running answer."""
        if not self._running:
            return
        running = list(self._running)
        try:
            logits = self.decoder.forward(running).float().cpu()
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

    def _advance(self, answer: Answer, logits: torch.Tensor) -> None:
        """Chooses an answer's next token and sends the text that is now certain."""
        token, report = self.decoder.choose(answer, logits)
        self.counts.generated(1)
        if token in self.decoder.eos:
            self._finish(answer, "stop", ended=True)
            return
        self._read_token(answer, token, report)

    def _read_token(self, answer: Answer, token: int, report: Reported | None) -> None:
        deltas = answer.reader.feed(token, report)
        if deltas:
            self._tell(answer.job, Event(answer.index, deltas))
        if answer.reader.stopped:
            self._finish(answer, "stop", ended=False)
        elif answer.tokens >= answer.job.most:
            self._finish(answer, "length", ended=False)

    def _finish(self, answer: Answer, reason: str, ended: bool) -> None:
        deltas = answer.reader.finish(ended)
        if ended and answer.reader.calls and all(call.whole for call in answer.reader.calls):
            reason = "tool_calls"
        self._running.remove(answer)
        self.decoder.keep(answer)
        self._count(reason)
        self._tell(answer.job, Event(answer.index, deltas, Finish(reason, answer.reader, answer.tokens)))

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """Fails the jobs. The traceback goes to the server's standard error; the client gets one sentence."""
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
            except RuntimeError:  # the event loop that listened is closed
                job.cancelled = True

    def _count(self, outcome: str) -> None:
        self.counts.finished[outcome] = self.counts.finished.get(outcome, 0) + 1


def _words(error: Exception) -> str:
    """The message for the client. A ValueError says what was wrong with the request; other errors are not shown."""
    return str(error) if isinstance(error, ValueError) else "The server failed on this request."
