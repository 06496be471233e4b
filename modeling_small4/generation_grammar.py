"""Decoding under a grammar, as one logits processor: what may follow in each row, from the end of its thought on.

Its state is recomputed from the ids at every step, so beams may be reordered and drafted tokens discarded. Must not
know: models, how grammars are written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from .grammar import Grammar, Matcher, Vocabulary
from .grammar_end import is_free, shortest_end

SLACK = (
    16  # tokens, and at least as many as a whole answer needs, by which an answer is closed before its tokens run out
)


@dataclass
class GrammarRow:
    """What is asked of one prompt.

    Attributes:
        grammar: None for a row that is free.
        start: index in the ids of the answer's first token.
        opens: whether a thought opens first: True it does (mode "high"), False it does not ("none"), None the model
            chooses.
        begun: what the prompt holds of the answer.
    """

    grammar: Grammar | None
    start: int
    opens: bool | None
    begun: list[int] = field(default_factory=list)


@dataclass
class _Look:
    """A look for an end: `at` so many ids read there was `plan`, the way to one; the next look is due at `again` tokens
    left.
    """

    at: int
    plan: list[int] | None
    again: float


@dataclass
class _Cursor:
    """A row's state in the engine, the ids it has read, and the looks taken on their way, which only depend on them."""

    matcher: Matcher
    read: list[int] = field(default_factory=list)
    looks: list[_Look] = field(default_factory=list)

    def go_to(self, text: list[int]) -> bool:
        """Makes `text` what was read; False if the grammar does not allow it, which a draft need not."""
        if text == self.read:
            return True
        same = len(self.read)
        if text[:same] != self.read:
            same = next(i for i, id_ in enumerate([*text, None]) if i == len(self.read) or id_ != self.read[i])
            while self.looks and self.looks[-1].at > same:
                self.looks.pop()
            if not self.matcher.rollback(len(self.read) - same):  # not every EBNF grammar can be taken back
                self.matcher.reset()
                same = 0
        self.read = text[: same + self.matcher.try_consume_tokens(text[same:])]
        return len(self.read) == len(text)

    def plan(self, left: float, slack: int, vocabulary: Vocabulary) -> list[int] | None:
        """The way to an end from here if it has to be taken now, with `left` tokens left; None if not, or if there is
        none.
        """
        look = self.looks[-1] if self.looks else None
        gone = 0 if look is None else len(self.read) - look.at
        if look is not None and look.plan is not None and self.read[look.at :] == look.plan[:gone]:
            plan: list[int] | None = look.plan[gone:]
        elif look is None or left <= look.again:
            plan = shortest_end(self.matcher, vocabulary)
            enough = slack if plan is None else len(plan) + 1 + slack
            self.looks.append(_Look(len(self.read), plan, max(enough, (left + enough) // 2)))
        else:
            return None
        return plan if plan is not None and len(plan) < left <= len(plan) + 1 + slack else None


class GrammarProcessor(LogitsProcessor):
    """Allows only what continues each row's answer towards a valid end.

    Behind `[/THINK]`, or from the answer's first token on where no thought opens, the answer is the grammar's; an end
    of message is allowed where the grammar is at an end. A thought is free, but holds no other special tokens. If other
    processors leave nothing that the grammar allows, the grammar's tokens are all as likely.

    Args:
        rows: what is asked of each prompt.
        think, end_think: ids of the two special tokens; None where the vocabulary has none.
        eos: ids that end the message.

    Raises:
        ValueError: what the prompt holds of an answer does not fit its grammar.
    """

    def __init__(
        self,
        rows: Sequence[GrammarRow],
        vocabulary: Vocabulary,
        think: int | None,
        end_think: int | None,
        eos: Sequence[int],
    ) -> None:
        self.rows, self.vocabulary, self.eos = list(rows), vocabulary, set(eos)
        self.think, self.end_think = think, end_think
        self.limit: int | None = None  # length at which generation ends, once it is known
        self.first = min(row.start for row in rows)
        self._fresh = [None if row.grammar is None else row.grammar.matcher(vocabulary) for row in rows]
        self._shortest = [self._whole(row, fresh) for row, fresh in zip(self.rows, self._fresh, strict=True)]
        self._cursors: list[_Cursor | None] = []
        self._special = np.array(sorted(vocabulary.control_ids.values()), dtype=np.int64)
        for row, matcher in zip(self.rows, self._fresh, strict=True):
            text = self._text(row.begun)
            if matcher is not None and text is not None and not _Cursor(matcher.deep_copy()).go_to(text):
                raise ValueError("The prompt ends in the beginning of an answer that does not fit the grammar.")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [rows, length], scores [rows, vocabulary]; rows are the prompts' rows, each repeated equally."""
        count, width = scores.shape
        if len(self._cursors) != count:
            fresh = [each for each in self._fresh for _ in range(count // len(self._fresh))]
            self._cursors = [None if each is None else _Cursor(each.deep_copy()) for each in fresh]
        allowed = np.ones((count, width), dtype=bool)
        left = float("inf") if self.limit is None else self.limit - input_ids.shape[1]
        for index, (cursor, answer) in enumerate(zip(self._cursors, input_ids[:, self.first :].tolist(), strict=True)):
            if cursor is not None:
                prompt = index * len(self.rows) // count
                self._allow(allowed[index], cursor, prompt, answer[self.rows[prompt].start - self.first :], left)
        mask = torch.from_numpy(allowed).to(scores.device)
        kept = scores.masked_fill(~mask, -torch.inf)
        nothing = (kept == -torch.inf).all(dim=-1, keepdim=True)
        return torch.where(nothing, torch.zeros_like(scores).masked_fill(~mask, -torch.inf), kept)

    def _allow(self, allowed: np.ndarray, cursor: _Cursor, prompt: int, answer: list[int], left: float) -> None:
        """Marks in `allowed` [vocabulary] what may follow the answer."""
        row, text = self.rows[prompt], self._text(answer)
        if not answer and row.opens:
            return  # `[THINK]` is forced
        if text is None:
            self._allow_thought(allowed, prompt, left)
            return
        if not self.eos.isdisjoint(text) or not cursor.go_to(text):
            return  # at its end, or behind a drafted token that will be refused
        self._allow_text(allowed, cursor.matcher)
        if row.grammar is not None and row.grammar.close and self.limit is not None:
            self._close(allowed, cursor, prompt, left)
        if not answer and row.opens is None and self.think is not None:
            allowed[self.think] = True

    def _text(self, answer: list[int]) -> list[int] | None:
        """The part of an answer that is the grammar's: behind its thought; None within one."""
        text = answer
        if self.end_think in answer:
            text = answer[len(answer) - answer[::-1].index(self.end_think) :]
        return None if self.think in text else text

    def _allow_thought(self, allowed: np.ndarray, prompt: int, left: float) -> None:
        allowed[self._special[self._special < len(allowed)]] = False
        allowed[self.end_think] = True
        need = self._shortest[prompt]
        if need is not None and need < left <= need + 1 + self._slack(prompt):
            allowed[:] = False
            allowed[self.end_think] = True

    def _allow_text(self, allowed: np.ndarray, matcher: Matcher) -> None:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        if matcher.is_error():
            raise ValueError(f"The grammar is too complex to go on with: {' '.join(matcher.get_error().split())[:300]}")
        width = min(len(bits), len(allowed), len(self.vocabulary.tokens))
        allowed[:width], allowed[width:] = bits[:width], False
        for index in self.eos:
            if index < len(allowed):
                allowed[index] = bits[self.vocabulary.eos]

    def _close(self, allowed: np.ndarray, cursor: _Cursor, prompt: int, left: float) -> None:
        """Allows nothing but the way to an end where tokens run out, if there are enough for it."""
        plan = cursor.plan(left, self._slack(prompt), self.vocabulary)
        if plan is None:
            return
        if plan:
            allowed[:] = False
            allowed[plan[0]] = True
        elif is_free(cursor.matcher, self.vocabulary):
            allowed[[each for each in self._special if each < len(allowed) and each not in self.eos]] = False
        else:
            ends = [index for index in self.eos if index < len(allowed)] or [self.vocabulary.eos]
            allowed[:] = False
            allowed[ends] = True

    def _slack(self, prompt: int) -> int:
        """Tokens by which an answer is closed early, for what may begin meanwhile."""
        grammar = self.rows[prompt].grammar
        return max(SLACK, self._shortest[prompt] or 0, 0 if grammar is None else grammar.reserve)

    def _whole(self, row: GrammarRow, fresh: Any) -> int | None:
        """Tokens of the shortest answer, its end included; None where it is not known or not needed."""
        if row.grammar is None or not row.grammar.close:
            return None
        end = shortest_end(fresh, self.vocabulary)
        return None if end is None else len(end) + 1
