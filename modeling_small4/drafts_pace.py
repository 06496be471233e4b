"""How far to draft: what a drafted token costs, how likely it is to be right, and when drafting does not pay at all.

A forward over n tokens costs a fixed part and a part for each expert that has to be read, since in a mixture every
further token brings experts of its own. Both parts are fitted to forwards seen: their seconds, and the experts that
routers really chose. Only speed depends on anything here, never an answer. Must not know: models, how drafts are made.
"""

from dataclasses import dataclass, field

LONGEST = 12  # tokens drafted at most
MEMORY = 0.9  # weight of what was known before, at each observation
PROBE, LONGEST_PAUSE = 8, 512  # tokens decoded plainly before drafting is tried again; doubled each time it fails
COUNT_EVERY = 64  # forwards
FIRST_SLOPE = 0.1  # of a forward's time, for each time that the experts of one token are read again
WORTH_TRYING = 0.1  # acceptance of all drafts so far from which a draft is tried at the beginning of each answer
MARGIN = 1.03  # drafting has to promise this much


@dataclass
class Costs:
    """Seconds of a forward, as a line over the experts it reads.

    Attributes:
        experts, top_k, layers: Of the model; no experts in a dense one.
        touched: Measured experts of all layers, by tokens of the forward.
    """

    experts: int
    top_k: int
    layers: int
    touched: dict[int, float] = field(default_factory=dict)
    counted: int = 0
    weight: float = 0.0
    mean_x: float = 0.0
    mean_y: float = 0.0
    square: float = 0.0
    product: float = 0.0

    def reads(self, tokens: int) -> float:
        """Experts that a forward over so many tokens reads: as measured, else as if tokens chose independently."""
        if tokens in self.touched:
            return self.touched[tokens]
        if not self.experts:
            return float(tokens)
        chance = self.layers * self.experts * (1 - (1 - self.top_k / self.experts) ** tokens)
        below = max((n for n in self.touched if n < tokens and n > 1), default=None)
        if below is None:
            return chance
        own = self.layers * self.experts * (1 - (1 - self.top_k / self.experts) ** below)
        return chance * self.touched[below] / own  # real tokens choose alike

    def wants_count(self, tokens: int) -> bool:
        """Whether to count the experts that a forward over so many tokens reads: when unknown, and now and then."""
        self.counted += 1
        return bool(self.experts) and (tokens not in self.touched or self.counted % COUNT_EVERY == 0)

    def note_experts(self, tokens: int, touched: float) -> None:
        """A forward over so many tokens has read so many experts, in all layers together."""
        old = self.touched.get(tokens)
        self.touched[tokens] = touched if old is None else MEMORY * old + (1 - MEMORY) * touched

    def note(self, tokens: int, seconds: float) -> None:
        """A forward took so long. One that took far longer than known (a page fault, another process) counts less."""
        if self.weight > 3:
            seconds = min(seconds, 2 * self.seconds(tokens))
        x, keep = self.reads(tokens), 0.97
        self.weight = keep * self.weight + 1
        step = 1 / self.weight
        dx, dy = x - self.mean_x, seconds - self.mean_y
        self.mean_x, self.mean_y = self.mean_x + step * dx, self.mean_y + step * dy
        self.square = keep * self.square + dx * (x - self.mean_x)
        self.product = keep * self.product + dx * (seconds - self.mean_y)

    def seconds(self, tokens: int) -> float:
        """Of a forward over so many tokens."""
        if self.square > 1e-9:
            slope = max(0.0, self.product / self.square)
        else:  # one sort of forward so far: expect little, so that drafts are tried
            slope = FIRST_SLOPE * self.mean_y / self.mean_x if self.mean_x else 0.0
        return max(self.mean_y + slope * (self.reads(tokens) - self.mean_x), 0.1 * self.mean_y)


@dataclass
class Pace:
    """What one draft was seen to do for one model; kept from call to call.

    Attributes:
        gain: Tokens a second with drafts over those without, lately.
        drafted, accepted, forwards: Tokens drafted and accepted, and forwards of the model, for reports.
    """

    costs: Costs
    draft_first: float = 0.0  # seconds until a draft's first token, and for each further one
    draft_next: float = 0.0
    trust: float = 1.0  # how often tokens come true, over what the draft says
    pause: int = 0  # forwards until the draft is asked again
    next_pause: int = PROBE
    gain: float = 1.2
    drafted: int = 0
    accepted: int = 0
    forwards: int = 0

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def begin_text(self) -> None:
        """Another answer begins: a draft that was right before is tried again at once, whatever the last text was."""
        if self.acceptance > WORTH_TRYING:
            self.pause, self.next_pause = 0, PROBE

    def wants_draft(self) -> bool:
        """Whether to draft before the next forward."""
        if self.pause > 0:
            self.pause -= 1
            return False
        return True

    def worth_drafting(self, drafted: int, sure: float) -> bool:
        """Whether to draft another token behind `drafted` ones, which are all right with the chance `sure`.

        A right token saves what a token costs now; a drafted one costs the draft's step and its part of the forward.
        """
        return drafted < LONGEST and sure * self._saved() > self.draft_next + self._reading(drafted)

    def worth_checking(self, drafted: int, sure: float) -> bool:
        """Whether another token, drafted already, is worth its part of the forward; `sure`: chance of all of them."""
        return drafted < LONGEST and sure * self._saved() > self._reading(drafted)

    def _saved(self) -> float:
        return self.costs.seconds(1) / max(1.0, self.gain)

    def _reading(self, drafted: int) -> float:
        return max(0.0, self.costs.seconds(drafted + 2) - self.costs.seconds(drafted + 1))

    def note_draft(self, tokens: int, seconds: float) -> None:
        """A draft of so many tokens took so long."""
        if tokens <= 1:
            self.draft_first = _mixed(self.draft_first, seconds)
        else:
            self.draft_next = _mixed(self.draft_next, max(0.0, seconds - self.draft_first) / (tokens - 1))

    def note_round(self, chances: list[float], accepted: int, seconds: float | None, asked: bool) -> None:
        """A forward has checked a draft.

        Args:
            chances: What the draft said of each of its tokens, alone.
            accepted: How many came true, from the first on.
            seconds: Of the forward; None where it did more than usual.
            asked: Whether the draft was asked; it may have found no token worth checking.
        """
        self.forwards += 1
        if seconds is None:
            seconds = self.costs.seconds(len(chances) + 1)
        else:
            self.costs.note(len(chances) + 1, seconds)
        if not asked:
            return
        self.drafted += len(chances)
        self.accepted += accepted
        for place, said in enumerate(chances[: accepted + 1]):
            self.trust += 0.05 * (float(place < accepted) - self.trust * said)
        self.trust = min(1.0, max(0.02, self.trust))
        spent = seconds + self.draft_first + self.draft_next * max(0, len(chances) - 1)
        self.gain = 0.8 * self.gain + 0.2 * (1 + accepted) * self.costs.seconds(1) / max(spent, 1e-9)
        if self.gain < MARGIN:
            self.pause, self.next_pause = self.next_pause, min(2 * self.next_pause, LONGEST_PAUSE)
            self.gain = MARGIN  # then each failure leads to the next pause at once
        elif self.gain > 1.1 * MARGIN:
            self.next_pause = PROBE


def _mixed(old: float, new: float) -> float:
    return new if not old else 0.8 * old + 0.2 * min(new, 4 * old)
