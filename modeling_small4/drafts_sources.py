"""How tokens are drafted: by an EAGLE or a DFlash draft, by a small model, or from the text before.

Each source keeps what it needs for one call of `generate`. Drafts are always the likeliest tokens: a sampled answer
then follows them as often as the model itself says. Must not know: how drafts are checked.
"""

import time

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from .cpu_matmul import linear
from .drafts_dflash import DFlashDraft
from .drafts_eagle import Small4EagleDraft
from .drafts_eagle_small import SmallEagle, SmallEagleState
from .drafts_pace import LONGEST, AnswerPace, Pace
from .drafts_view import DraftView


class Drafting:
    """Drafts for one call of `generate`, of which a subclass says `propose` and `unread`.

    Attributes:
        pace: What the draft has shown in all calls.
        answer: How far to draft in this one; from `begin` on.
        view: Where the model shows its hidden states, for drafts that read them.
    """

    def __init__(self, pace: Pace, view: DraftView | None = None) -> None:
        self.pace, self.view = pace, view
        self.answer: AnswerPace
        self.chances: list[float] = []
        self.asked, self.forwards = False, 0

    def begin(self, rows: int, tokens: int, seconds: float) -> None:
        """The model has read prompts of so many tokens, in so many rows and seconds; answers begin."""
        self.answer = AnswerPace(self.pace, rows)
        self.answer.note_prompt(tokens, seconds)

    def draft(self, ids: torch.Tensor, mask: torch.Tensor | None, going: torch.Tensor, room: int) -> torch.Tensor:
        """Tokens for behind `ids`, `[rows, as many as pay]`.

        Args:
            mask: `[rows, cached + new]`, 0 where padded, or None.
            going: `[rows]`, 0 for rows that are done, whose drafts do not matter.
            room: Most tokens.
        """
        self.chances, unread = [], self.unread(ids)
        self.asked = room > 0 and self.answer.wants_draft(unread)
        if self.asked:
            begin = time.perf_counter()
            tokens = self.propose(ids, mask, going, room)
            self.answer.note_draft(len(tokens), unread, time.perf_counter() - begin)
            if tokens:
                return torch.stack(tokens, dim=1)
        return ids.new_empty((ids.shape[0], 0))

    def unread(self, ids: torch.Tensor) -> int:
        """Tokens of each row that the draft has not read."""
        raise NotImplementedError

    def propose(
        self, ids: torch.Tensor, mask: torch.Tensor | None, going: torch.Tensor, room: int
    ) -> list[torch.Tensor]:
        """Tokens one after the other, each `[rows]`, with `self.chances` of each."""
        raise NotImplementedError

    def read(self, seconds: float) -> None:
        """The model's forward over the last token and the draft took so long."""
        self.forwards += 1
        self.answer.note_forward(len(self.chances), seconds)

    def checked(self, accepted: int, wrong: int) -> None:
        """So many drafted tokens were right, and the last `wrong` were forgotten by the model's cache."""
        if self.view is not None:
            self.view.forget(wrong)
        if self.forwards:
            self.answer.note_round(self.chances, accepted, self.asked)

    def worth(self, logits: torch.Tensor, going: torch.Tensor, tokens: list[torch.Tensor], sure: float) -> float:
        """Append the likeliest token, if it is worth checking; what the whole draft's chance is then, else 0.

        Args:
            logits: `[rows, vocabulary]`.
            sure: Chance of the tokens before.
        """
        chances, token = logits.float().softmax(dim=-1).max(dim=-1)
        said = float(chances.where(going > 0, 1.0).prod()) if going.shape[0] > 1 else float(chances)
        sure *= min(1.0, said * self.pace.trust)
        if not self.answer.worth_checking(len(tokens), sure):
            return 0.0
        tokens.append(token)
        self.chances.append(said)
        return sure


class EagleDrafting(Drafting):
    """By an EAGLE draft, which reads what the model shows of each token.

    Args:
        small: The same draft's matrices where it is small; they serve where no row is padded.
    """

    def __init__(
        self, source: Small4EagleDraft, model: PreTrainedModel, pace: Pace, small: SmallEagle | None = None
    ) -> None:
        super().__init__(pace, DraftView())
        self.embeddings, self.head = model.get_input_embeddings(), model.get_output_embeddings()
        self.source, self.cache = source, source.new_cache()
        self.small = None if small is None else SmallEagleState(small)

    def unread(self, ids: torch.Tensor) -> int:
        assert self.view is not None
        return len(self.view)

    def propose(
        self, ids: torch.Tensor, mask: torch.Tensor | None, going: torch.Tensor, room: int
    ) -> list[torch.Tensor]:
        assert self.view is not None
        tokens: list[torch.Tensor] = []
        seen, sure, small = self.view.take(), 1.0, self.small if mask is None else None
        embeddings = torch.cat((seen.embeddings[:, 1:], self.embeddings(ids[:, -1:])), dim=1)
        hidden, positions, steps = seen.hidden, seen.positions, 0
        first = int(positions[0, 0]) if small else 0
        shown = None if mask is None else mask[:, mask.shape[1] - 1 - self.cache.get_seq_length() - len(seen) : -1]
        while True:
            if small:
                hidden = small(embeddings, hidden, first)[:, -1:]
                first += len(seen) if not steps else 1
            else:
                hidden = self.source(embeddings, hidden, shown, positions, self.cache)[:, -1:]
            steps += 1
            logits = small.logits(hidden) if small else linear(self.head, hidden.to(embeddings.dtype))
            sure = self.worth(logits[:, -1], going, tokens, sure)
            if not sure or len(tokens) >= room or not self.answer.worth_drafting(len(tokens), sure):
                break
            embeddings, positions = self.embeddings(tokens[-1][:, None]), positions[:, -1:] + 1
            shown = None if shown is None else torch.cat((shown, shown.new_ones((shown.shape[0], 1))), dim=1)
        if small:  # its own guesses are replaced by what the model shows
            small.forget(steps - 1)
        else:
            self.cache.crop(1 - steps)
        return tokens


class DFlashDrafting(Drafting):
    """By a DFlash draft: a whole block in one forward, of which as many tokens as pay are checked."""

    def __init__(self, source: DFlashDraft, model: PreTrainedModel, pace: Pace) -> None:
        super().__init__(pace, DraftView(source.rules.layers))
        self.source, self.cache = source, DynamicCache()
        self.embeddings = source.embeddings or model.get_input_embeddings()
        self.head = source.head or model.get_output_embeddings()

    def unread(self, ids: torch.Tensor) -> int:
        assert self.view is not None
        return len(self.view)

    def propose(
        self, ids: torch.Tensor, mask: torch.Tensor | None, going: torch.Tensor, room: int
    ) -> list[torch.Tensor]:
        assert self.view is not None
        rules, seen = self.source.rules, self.view.take()
        known = int(self.cache.get_seq_length()) + len(seen)
        shown = None if mask is None else mask[:, mask.shape[1] - 1 - known : -1]
        block = torch.cat((ids[:, -1:], ids.new_full((ids.shape[0], rules.block - 1), rules.mask)), dim=1)
        places = seen.positions[:, -1:] + 1 + torch.arange(rules.block, device=ids.device)
        guessed = self.source(
            self.embeddings(block), seen.hidden, torch.cat((seen.positions, places), dim=1), shown, self.cache
        )
        self.cache.crop(-rules.block)
        guessed = guessed[:, 0 if rules.predicts_next else 1 :][:, : min(room, LONGEST)]
        logits = linear(self.head, guessed.to(self.head.weight.dtype))
        tokens: list[torch.Tensor] = []
        sure = 1.0
        for place in range(logits.shape[1]):
            sure = self.worth(logits[:, place], going, tokens, sure)
            if not sure:
                break
        return tokens if self.source.ids is None else [self.source.ids.to(ids.device)[token] for token in tokens]


class ModelDrafting(Drafting):
    """By a small model of the same vocabulary, which reads the ids alone."""

    def __init__(self, source: PreTrainedModel, pace: Pace) -> None:
        super().__init__(pace)
        self.source, self.cache = source, _cache_of(source)

    def unread(self, ids: torch.Tensor) -> int:
        return ids.shape[1] - int(self.cache.get_seq_length())

    def propose(
        self, ids: torch.Tensor, mask: torch.Tensor | None, going: torch.Tensor, room: int
    ) -> list[torch.Tensor]:
        tokens: list[torch.Tensor] = []
        sure, start, length = 1.0, self.cache.get_seq_length(), ids.shape[1]
        new, shown = ids[:, start:], None if mask is None else mask[:, mask.shape[1] - length :]
        while True:
            positions = None if shown is None else (shown.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
            output = self.source(
                input_ids=new, attention_mask=shown, position_ids=positions, cache=self.cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            sure = self.worth(output.logits[:, -1], going, tokens, sure)
            if not sure or len(tokens) >= room or not self.answer.worth_drafting(len(tokens), sure):
                break
            new = tokens[-1][:, None]
            shown = None if shown is None else torch.cat((shown, shown.new_ones((shown.shape[0], 1))), dim=1)
        self.cache.crop(length - self.cache.get_seq_length())
        return tokens


def _cache_of(model: PreTrainedModel) -> Cache:
    make = getattr(model, "cache_for", None)
    return DynamicCache(config=model.config.get_text_config()) if make is None else make(0, None)


class LookupDrafting(Drafting):
    """From the text before: what followed the last few tokens where they stood last."""

    LENGTHS = (6, 4, 3, 2)  # of what has to be repeated
    SAID = (0.95, 0.85, 0.7, 0.4)  # chance of a next token, before any was seen

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace)
        self.texts: list[list[int]] = []
        self.places: list[dict[tuple[int, ...], int]] = []

    def unread(self, ids: torch.Tensor) -> int:
        return ids.shape[1] - (len(self.texts[0]) if self.texts else 0)

    def propose(
        self, ids: torch.Tensor, mask: torch.Tensor | None, going: torch.Tensor, room: int
    ) -> list[torch.Tensor]:
        self._learn(ids)
        found = [self._found(row, room) if go else None for row, go in enumerate(going.tolist())]
        rows = [row for row in found if row is not None]
        if not rows or not all(tokens for tokens, _ in rows):
            return []
        sure, count = 1.0, 0
        for _ in range(min(len(tokens) for tokens, _ in rows)):
            said = 1.0
            for _, chance in rows:
                said *= chance
            sure *= min(1.0, said * self.pace.trust)
            if not self.answer.worth_checking(count, sure):
                break
            self.chances.append(said)
            count += 1
        drafts = [[0] * count if row is None else row[0][:count] for row in found]
        return list(torch.tensor(drafts, device=ids.device).T) if count else []

    def _learn(self, ids: torch.Tensor) -> None:
        """Note where each short piece of text stood last, but for the last one."""
        if not self.texts:
            self.texts, self.places = [[] for _ in ids], [{} for _ in ids]
        new = ids[:, len(self.texts[0]) :].tolist()
        for tokens, text, places in zip(new, self.texts, self.places, strict=True):
            for token in tokens:
                end = len(text)
                text.append(token)
                for length in self.LENGTHS:
                    if end >= length:
                        places[tuple(text[end - length : end])] = end

    def _found(self, row: int, room: int) -> tuple[list[int], float]:
        text, places = self.texts[row], self.places[row]
        for length, said in zip(self.LENGTHS, self.SAID, strict=True):
            if len(text) > length and (start := places.get(tuple(text[-length:]))) is not None:
                return text[start : start + room], said
        return [], 0.0
