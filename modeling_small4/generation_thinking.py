"""The rules of thinking while decoding, as one logits processor: when a thought opens, how long it lasts, what follows.

Its state is recomputed from the ids at every step, so beams may be reordered and drafted tokens discarded. Must not
know: models, prompts' wording, how the tokens are chosen.
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


class ThinkingProcessor(LogitsProcessor):
    """Keeps every answer in the form `([THINK] thought [/THINK])? answer`.

    Per row: mode "none" opens no thought; "high" opens one first, unless the answer has already begun in the prompt;
    None leaves both to the model. In a thought the end of the message and a second `[THINK]` are not allowed, and after
    `budget` tokens of thought (those in the prompt counted) `[/THINK]` is forced. Behind it no second thought opens.

    Args:
        starts: index of the answer's first token in the ids of each prompt, which may lie inside the prompt.
        modes: "none", "high" or None, for each prompt.
        budget: most tokens between `[THINK]` and `[/THINK]`; None for no limit.
        think, end_think: ids of the two special tokens.
        eos: ids that end the message.
    """

    def __init__(
        self,
        starts: Sequence[int],
        modes: Sequence[str | None],
        budget: int | None,
        think: int,
        end_think: int,
        eos: Sequence[int],
    ) -> None:
        self.first = min(starts)
        self.starts = torch.tensor(list(starts))
        self.high = torch.tensor([mode == "high" for mode in modes])
        self.ruled = torch.tensor([mode is not None for mode in modes])
        self.budget, self.think, self.end_think = budget, think, end_think
        self.eos = torch.tensor(list(eos), dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [rows, length], scores [rows, vocabulary]; rows are the prompts' rows, each repeated equally."""
        repeats = input_ids.shape[0] // self.starts.shape[0]
        starts, high, ruled = (
            state.to(scores.device).repeat_interleave(repeats) for state in (self.starts, self.high, self.ruled)
        )
        answer = input_ids[:, self.first :].to(scores.device)
        inside = torch.arange(self.first, input_ids.shape[1], device=scores.device) >= starts[:, None]
        opens = (answer == self.think) & inside
        count = opens.cumsum(dim=-1)
        since = (count > 0) & (count == opens.sum(dim=-1, keepdim=True))  # from the last [THINK] on
        opened = opens.any(dim=-1)
        thinking = opened & ~(since & (answer == self.end_think)).any(dim=-1)

        open_now = high & (starts == input_ids.shape[1])
        governed = ruled | opened
        scores = self._ban(scores, [self.think], governed & ~open_now)
        scores = self._ban(scores, [self.end_think], governed & ~thinking)
        scores = self._ban(scores, self.eos, thinking)
        scores = self._force(scores, self.think, open_now)
        if self.budget is None:
            return scores
        return self._force(scores, self.end_think, thinking & (since.sum(dim=-1) > self.budget))

    @staticmethod
    def _ban(scores: torch.Tensor, tokens: Sequence[int] | torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        banned = torch.zeros_like(scores, dtype=torch.bool)
        banned[:, tokens] = rows[:, None]
        kept = scores.masked_fill(banned, -torch.inf)
        # Another processor may have left nothing but a banned token (a forced end at the maximum length): let it be.
        return torch.where((kept == -torch.inf).all(dim=-1, keepdim=True), scores, kept)

    @staticmethod
    def _force(scores: torch.Tensor, token: int, rows: torch.Tensor) -> torch.Tensor:
        only = torch.full_like(scores, -torch.inf)
        only[:, token] = 0
        return torch.where(rows[:, None], only, scores)
