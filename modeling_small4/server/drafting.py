"""Drafts in the server: an answer that runs alone is decoded several tokens at a step, with the same choices.

The model's scores behind drafted tokens are kept; as long as the answer goes on as drafted, they are taken instead of a
forward. Must not know: how tokens are chosen, how drafts are made.
"""

import time

import torch

from ..cache import LatentCache
from ..drafts_decoding import finished
from ..drafts_sources import Drafting
from ..modeling_small4 import Small4ForCausalLM


class DraftedAnswer:
    """One answer's draft. Until `settle`, its cache holds drafted tokens behind those that were chosen.

    Args:
        drafting: Of this answer alone.
        prompt: Ids before it.
        cache: Its cache.
    """

    def __init__(self, drafting: Drafting, prompt: list[int], cache: LatentCache) -> None:
        self.drafting, self.prompt, self.cache = drafting, prompt, cache
        self.text: torch.Tensor | None = None  # prompt and answer, of which `known` ids, `[1, length]`
        self.known = 0
        self.draft: list[int] = []
        self.logits: torch.Tensor | None = None  # [drafted + 1, vocabulary], behind the last token and each drafted one
        self.place = 0  # tokens of the draft that were chosen

    @torch.no_grad()
    def forward(self, model: Small4ForCausalLM, ids: list[int], room: int) -> torch.Tensor:
        """Logits `[vocabulary]` behind the last of `ids`, the answer's; at most `room` tokens are drafted."""
        if self.logits is not None and self.place < len(self.draft) and self.draft[self.place] == ids[-1]:
            self.place += 1
            return self.logits[self.place]
        self.settle()
        new = ids[self.known :] if self.text is not None else [*self.prompt, *ids]
        text = torch.tensor([new], device=model.device)
        self.text = text = text if self.text is None else torch.cat((self.text, text), dim=1)
        self.known = len(ids)
        drafted = self.drafting.draft(text, None, text.new_ones(1), room if self._has_seen() else 0)
        given = {} if self.drafting.view is None else {"draft_view": self.drafting.view}
        begin = time.perf_counter()
        last = torch.cat((text[:, -1:], drafted), dim=1)
        self.logits = model(input_ids=last, cache=self.cache, use_cache=True, **given).logits[0]
        self.drafting.read(finished(self.logits) - begin)
        self.draft, self.place = drafted[0].tolist(), 0
        return self.logits[0]

    def settle(self) -> None:
        """Forget drafted tokens that were not chosen; then the cache is as without a draft."""
        wrong = len(self.draft) - self.place
        if self.logits is not None:
            self.drafting.checked(self.place, wrong)
        if wrong:
            self.cache.crop(-wrong)
        self.draft, self.logits, self.place = [], None, 0

    def _has_seen(self) -> bool:
        """Whether a draft that reads hidden states has any to start from."""
        return self.drafting.view is None or bool(self.drafting.view.forwards)
