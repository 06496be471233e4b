"""Chooses the next token of a sequence from its logits: rules, penalties, bias, temperature; and reports probabilities.

Knows nothing of request formats, of text, or of other sequences.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch

ALWAYS, NEVER = 100.0, -100.0  # logit biases that force or forbid a token
CANDIDATES = 1024  # top-p first searches this many of the most likely tokens


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: 0 for no limit.
        top_p: 1 for no limit.
        min_p: least probability relative to that of the most likely token.
        frequency_penalty, presence_penalty: subtracted from a token's logit for each time it was generated, or once.
        repetition_penalty: divides the positive logit of any earlier token, in the prompt too; multiplies a negative
            one.
        bias: token id -> added to its logit.
        seed: makes sampling repeatable.
        logprobs: how many alternatives are reported for each token; None for no report.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Reported:
    """The model's log probability of a token, before all rules, and those of the most likely alternatives, by id."""

    token: int
    logprob: float
    alternatives: list[tuple[int, float]]


class Thought:
    """Rules of thinking: when it starts, how long it lasts, and that it does not start again. As `ThinkingProcessor`,
    but token by token.

    Args:
        mode: "high" starts with a thought; "none" has none; None leaves it to the model.
        budget: limit of tokens between `[THINK]` and `[/THINK]`.
        think, end_think: their ids; None if the vocabulary lacks them.
        begun: the part of the answer that is in the prompt.
    """

    def __init__(
        self, mode: str | None, budget: int | None, think: int | None, end_think: int | None, begun: list[int]
    ) -> None:
        self.mode, self.budget, self.think, self.end_think = mode, budget, think, end_think
        self.inside, self.opened, self.length, self.taken = False, False, 0, 0
        for token in begun:
            self.take(token)

    def take(self, token: int) -> None:
        """Records a token of the answer."""
        self.taken += 1
        if token == self.think:
            self.inside, self.opened, self.length = True, True, 0
        elif token == self.end_think:
            self.inside = False
        elif self.inside:
            self.length += 1

    def forced(self) -> int | None:
        """The only token allowed next, if there is one."""
        if self.mode == "high" and not self.taken:
            return self.think
        return self.end_think if self.inside and self.budget is not None and self.length >= self.budget else None

    def banned(self, eos: set[int]) -> set[int | None]:
        """Tokens not allowed next."""
        if self.inside:
            return {*eos, self.think}
        return {self.think, self.end_think} if self.opened or self.mode is not None else {self.end_think}


class Sampler:
    """Chooses tokens for one sequence.

    Args:
        prompt: its ids.
        closed: ids that are never generated.
        eos: ids that end the message.
        turn: index of the sequence in its request; sequences of a request share a seed.
    """

    def __init__(
        self,
        sampling: Sampling,
        thought: Thought,
        prompt: list[int],
        closed: torch.Tensor,
        eos: set[int],
        turn: int = 0,
    ) -> None:
        self.sampling, self.thought, self.closed, self.eos = sampling, thought, closed, eos
        self.generated: Counter[int] = Counter()
        self._prompt = prompt if sampling.repetition_penalty != 1 else []
        self._random = (
            torch.Generator().manual_seed((sampling.seed + turn) % 2**63) if sampling.seed is not None else None
        )

    def choose(self, logits: torch.Tensor, allowed: torch.Tensor | None) -> tuple[int, Reported | None]:
        """The next token.

        Args:
            logits: float32 `[vocabulary]`, on the CPU.
            allowed: the mask of a grammar: 0 for tokens that may follow, -inf for others.
        """
        forced = self.thought.forced()
        scores = self._ruled(self._penalized(logits.clone()), allowed)
        token = forced if forced is not None else self._draw(scores)
        reported = None if self.sampling.logprobs is None else _report(logits, token, self.sampling.logprobs)
        self.thought.take(token)
        self.generated[token] += 1
        return token, reported

    def _penalized(self, scores: torch.Tensor) -> torch.Tensor:
        wanted = self.sampling
        if wanted.repetition_penalty != 1:
            seen = torch.tensor(list({*self._prompt, *self.generated}))
            part = scores[seen]
            scores[seen] = torch.where(part > 0, part / wanted.repetition_penalty, part * wanted.repetition_penalty)
        if self.generated and (wanted.frequency_penalty or wanted.presence_penalty):
            tokens, counts = torch.tensor(list(self.generated)), torch.tensor(list(self.generated.values()))
            scores[tokens] -= counts * wanted.frequency_penalty + wanted.presence_penalty
        for token, value in wanted.bias.items():
            if value >= ALWAYS:  # above all others, but below the rules of grammar and thinking
                scores[token] = 1e6
            else:
                scores[token] = -torch.inf if value <= NEVER else scores[token] + value
        return scores

    def _ruled(self, scores: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
        """Sets forbidden tokens to -inf. If no likely token is left, all allowed tokens are equally likely."""
        if allowed is None:
            rules = torch.zeros_like(scores)
            rules[self.closed] = -torch.inf
        else:
            rules = allowed.clone()
        if allowed is None or self.thought.inside:  # outside of thoughts the grammar decides alone
            rules[[token for token in self.thought.banned(self.eos) if token is not None]] = -torch.inf
        ruled = scores + rules
        return rules if bool((ruled == -torch.inf).all()) else ruled

    def _draw(self, scores: torch.Tensor) -> int:
        wanted = self.sampling
        if wanted.temperature == 0 or wanted.top_k == 1:
            return int(scores.argmax())
        scores = scores / wanted.temperature
        tokens: torch.Tensor | None = None
        if wanted.top_k and wanted.top_k < len(scores):
            scores, tokens = scores.topk(wanted.top_k)
        probabilities = scores.softmax(-1)
        if wanted.top_p < 1:
            probabilities, tokens = _nucleus(probabilities, tokens, wanted.top_p)
        if wanted.min_p:
            probabilities = probabilities * (probabilities >= wanted.min_p * probabilities.max())
        drawn = int(torch.multinomial(probabilities, 1, generator=self._random))
        return drawn if tokens is None else int(tokens[drawn])


def _nucleus(
    probabilities: torch.Tensor, tokens: torch.Tensor | None, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely tokens that together reach `top_p`, at least one: their probabilities and ids."""
    count = min(CANDIDATES, len(probabilities))
    largest, order = probabilities.topk(count)
    if largest.sum() < top_p:
        largest, order = probabilities.sort(descending=True)
    before = largest.cumsum(-1) - largest
    kept = before < top_p
    kept[0] = True
    chosen = order[kept]
    return largest[kept], chosen if tokens is None else tokens[chosen]


def _report(logits: torch.Tensor, token: int, count: int) -> Reported:
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return Reported(token, float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
