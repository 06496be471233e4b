"""A streamer for `generate` that tells thinking, content and tool calls apart while they are written.

Must not know: how answers are read (the tokenizer's reader does), terminals.
"""

from collections.abc import Iterator
from queue import Queue
from typing import Any

from transformers.generation.streamers import BaseStreamer

from .processing_small4 import Small4Processor
from .tokenization_small4 import Small4Tokenizer


class Small4Streamer(BaseStreamer):
    """Yields `(channel, text)`, channel being "thinking", "content" or "tool_calls", and never half a character.

    Pass it as `streamer=` to `generate` running in another thread and iterate over it; `message` is the answer read so
    far, in the end what `parse_response` returns. One prompt at a time, as in transformers.

    Args:
        tokenizer: the tokenizer or the processor.
        timeout: seconds to wait for the next piece before `queue.Empty` is raised; None waits for ever.
    """

    def __init__(self, tokenizer: Small4Tokenizer | Small4Processor, timeout: float | None = None) -> None:
        self._tokenizer: Small4Tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # type: ignore[assignment]
        self._timeout = timeout
        self._queue: Queue[tuple[str, str] | None] = Queue()
        self._reader: Any = None

    def put(self, value: Any) -> None:
        """Takes the prompt's ids first and then those of new tokens, as `generate` hands them over."""
        if value.ndim > 1 and value.shape[0] > 1:
            raise ValueError(f"Small4Streamer streams one answer at a time, but got a batch of {value.shape[0]}.")
        if self._reader is None:
            self._reader = self._tokenizer.response_reader(value.flatten())
            return
        for piece in self._reader.feed(value.flatten()):
            self._queue.put(piece)

    def end(self) -> None:
        """Gives out what was held back and ends the iteration."""
        for piece in self._reader.finish() if self._reader is not None else ():
            self._queue.put(piece)
        self._queue.put(None)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        while (piece := self._queue.get(timeout=self._timeout)) is not None:
            yield piece

    @property
    def message(self) -> dict[str, Any]:
        """The answer so far as a message; see `parse_response`."""
        if self._reader is None:
            raise ValueError("Nothing was generated yet.")
        return self._reader.message()
