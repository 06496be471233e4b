"""What a forward over several tokens costs, in forwards over one: from the seconds and the experts of those seen.

A fixed part, and a part for each expert that has to be read, since in a mixture every further token brings experts of
its own. Must not know: drafts, models, clocks.
"""

from dataclasses import dataclass, field

MEMORY = 0.9  # weight of what was known before, at each observation
DOUBT = 0.98  # what is left, with each answer, of costs that keep from drafting, so that they are seen again
COUNT_EVERY = 64  # forwards
SHARE = 0.5  # of the weights read for a token that are of experts, about that of the released model


@dataclass
class Costs:
    """A forward over n tokens takes `level * (1 + slope * (reads(n) / reads(1) - 1))` seconds.

    Attributes:
        experts, top_k, layers: Of the model; no experts in a dense one.
        share: Of the time of a forward over one token that its experts take at most; the slope until one was seen.
        touched: Measured experts of all layers, by tokens of the forward.
        largest: Most tokens of a forward that was timed.
        prompt: Tokens and seconds of a prompt that was read at once.
    """

    experts: int
    top_k: int
    layers: int
    share: float = SHARE
    touched: dict[int, float] = field(default_factory=dict)
    largest: int = 1
    level: float = 0.0
    prompt: tuple[int, float] | None = None
    counted: int = 0
    square: float = 0.0  # the slope's least squares, of forwards seen
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

    def note(self, tokens: int, seconds: float, plain: bool) -> None:
        """A forward took so long. One that took far longer than known (a page fault, another process) counts less.

        Args:
            plain: No token of it was drafted.
        """
        self.largest = max(self.largest, tokens)
        if not self.level:
            self.level = seconds / self.over_one(tokens)
        found, again = min(seconds / self.over_one(tokens), 2 * self.level), self._again(tokens)
        if not plain:
            if not self.square:  # one forward alone says little
                self.square, self.product = 1.0, self.slope
            self.square = MEMORY * self.square + again**2
            most = 2 * again * max(self.slope, 0.1)
            self.product = MEMORY * self.product + again * min(seconds / self.level - 1, most)
        self.level += (0.2 if plain else 0.1) * (found - self.level)

    def seconds(self, tokens: int) -> float:
        """Of a forward over so many tokens; 0: none was seen."""
        return self.level * self.over_one(tokens)

    def over_one(self, tokens: int) -> float:
        """How many times a forward over one token."""
        return 1 + self.slope * self._again(tokens)

    def doubt(self) -> None:
        """Some time has passed: the part of the experts may be less than it was."""
        self.product *= DOUBT

    @property
    def slope(self) -> float:
        """Forwards for each time that the experts of one token are read again."""
        if self.square:
            return max(0.0, self.product / self.square)
        if self.prompt is None or not self.level:
            return self.share
        tokens, seconds = self.prompt  # it computes more, so this is what a forward costs at most
        return min(self.share, max(0.0, seconds / self.level - 1) / max(self._again(tokens), 1e-3))

    def _again(self, tokens: int) -> float:
        return max(0.0, self.reads(tokens) / self.reads(1) - 1) if tokens > 1 else 0.0
