"""How far to draft: what a drafted token costs, how likely it is to be right, and when drafting does not pay at all.

Everything is counted in forwards of the model over one token of each row. A draft is made only where, even if all of it
is wrong, the answer's drafts have lost at most `SHARE` of its plain time. Only speed depends on anything here, never an
answer. Must not know: models, how drafts are made, clocks.
"""

from dataclasses import dataclass

from .drafts_costs import DOUBT, Costs

LONGEST = 12  # tokens drafted at most
PROBE, LONGEST_PAUSE = 4, 512  # tokens decoded plainly before drafting is tried again; doubled each time it fails
SHARE = 0.03  # of an answer's plain time, which its drafts may lose; 5 % with what is not timed
CREDIT = 0.35  # forwards that an answer's first drafts, or its first alone, may lose if answers before gained as much
NEW, BEST = 0.55, 3.0  # forwards that a new draft has gained, so to speak, and the most that are remembered
WORTH_TRYING = 0.1  # acceptance of all drafts so far from which a draft is tried at the beginning of each answer
AGAIN = 1.05  # gain that is expected after a pause
GUESSED = 0.25  # forwards that a draft's token is expected to take at most, until its time was seen
CHEAP = 0.02  # forwards that do not matter
LONG_READ = 16  # tokens that a draft reads at once, from which its time is put down to their number


@dataclass
class Pace:
    """What one draft was seen to do for one model; kept from call to call.

    Attributes:
        weight: Weights that the draft reads for a token, over those that the model reads.
        at_once: All tokens of a draft take as long as one.
        draft_first, draft_next: Seconds until a draft's first token, and for each further one; None: not seen yet.
        draft_read: Seconds for each token of a text that the draft reads; None: not seen yet.
        trust: How often tokens come true, over what the draft says.
        record: Forwards gained in all answers, from 0 to `BEST`.
        pause: Forwards until the draft is asked again.
        gain: Tokens a second with drafts over those without, lately.
        drafted, accepted, forwards: Tokens drafted and accepted, and forwards of the model, for reports.
    """

    costs: Costs
    weight: float = 0.0
    at_once: bool = False
    draft_first: float | None = None
    draft_next: float | None = None
    draft_read: float | None = None
    trust: float = 1.0
    record: float = NEW
    pause: int = 0
    next_pause: int = PROBE
    gain: float = 1.2
    drafted: int = 0
    accepted: int = 0
    forwards: int = 0
    warm: bool = False

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def note_draft(self, tokens: int, read: int, seconds: float) -> None:
        """A draft of so many tokens, for which the draft has read so many tokens of the text, took so long."""
        if not self.warm:  # the first call takes longer than any other
            self.warm = True
        elif read > LONG_READ:
            first = self.draft_first or 0.0
            further = 0 if self.at_once else max(0, tokens - 1)
            own = first + (first if self.draft_next is None else self.draft_next) * further
            self.draft_read = _mixed(self.draft_read, max(0.0, seconds - own) / read)
        elif tokens <= 1 or self.at_once:
            self.draft_first = _mixed(self.draft_first, seconds)
        elif self.draft_first is None:
            self.draft_first = seconds / tokens
        else:
            self.draft_next = _mixed(self.draft_next, max(0.0, seconds - self.draft_first) / (tokens - 1))

    def doubt(self) -> None:
        """Another answer begins; see `DOUBT`."""
        self.costs.doubt()
        for name in ("draft_first", "draft_next", "draft_read"):
            if (seconds := getattr(self, name)) is not None:
                setattr(self, name, DOUBT * seconds)

    def note_tokens(self, chances: list[float], accepted: int) -> None:
        """So many of the tokens that were drafted with these chances came true, from the first on."""
        self.drafted += len(chances)
        self.accepted += accepted
        for place, said in enumerate(chances[: accepted + 1]):
            self.trust += 0.05 * (float(place < accepted) - self.trust * said)
        self.trust = min(1.0, max(0.02, self.trust))

    def note_gain(self, gain: float) -> None:
        """A step with a draft gave so many times the tokens that plain decoding gives in its time."""
        self.gain = 0.8 * self.gain + 0.2 * gain
        if self.gain < 1:
            self.pause, self.next_pause = self.next_pause, min(2 * self.next_pause, LONGEST_PAUSE)
            self.gain = AGAIN
        elif self.gain > 1.1 * AGAIN:
            self.next_pause = PROBE


class AnswerPace:
    """How far to draft in one call, by what its drafts may still lose.

    Args:
        rows: Of the batch.

    Attributes:
        tokens: Given so far, to the row that goes on longest.
        lost: Forwards that drafts cost more than they spared; negative: gained.
        prompt: Seconds in which the model read the prompt, until the draft has read it too.
    """

    def __init__(self, pace: Pace, rows: int = 1) -> None:
        self.pace, self.rows = pace, rows
        self.tokens, self.lost, self.prompt = 0, 0.0, 0.0
        self._credit: float | None = None
        pace.doubt()
        if pace.acceptance > WORTH_TRYING:  # was right before: is tried again at once, whatever the last text was
            pace.pause, pace.next_pause = 0, PROBE

    def wants_draft(self, unread: int) -> bool:
        """Whether to draft before the next forward. unread: tokens of the text that the draft has not read."""
        if self.pace.pause > 0:
            self.pace.pause -= 1
            return False
        least = self._reading(unread) + self._drafting(1) + self._checking(1)
        return bool(self._plain()) and least <= self._left(least)

    def worth_drafting(self, drafted: int, sure: float) -> bool:
        """Whether to draft another token behind `drafted` ones, which are all right with the chance `sure`.

        A right token saves what a token costs now; a drafted one costs the draft's step and its part of the forward.
        """
        step = self._drafting(2) - self._drafting(1)
        return self._allowed(drafted + 1) and sure / max(1.0, self.pace.gain) > step + self._further(drafted)

    def worth_checking(self, drafted: int, sure: float) -> bool:
        """Whether another token, drafted already, is worth its part of the forward; `sure`: chance of all of them."""
        return self._allowed(drafted + 1) and sure / max(1.0, self.pace.gain) > self._further(drafted)

    def note_prompt(self, tokens: int, seconds: float) -> None:
        """The model has read a prompt of so many tokens in each row."""
        self.prompt += seconds
        self.pace.costs.prompt = (self.rows * tokens, seconds)

    def note_draft(self, tokens: int, read: int, seconds: float) -> None:
        """See `Pace.note_draft`. What the draft reads of a prompt may take `SHARE` of what the model takes for it."""
        self.pace.note_draft(tokens, read, seconds)
        self._lose(self._reading(read))
        self.prompt = 0.0

    def note_forward(self, drafted: int, seconds: float) -> None:
        """A forward over a token of each row and so many drafted behind it took so long."""
        self.pace.costs.note(self.rows * (drafted + 1), seconds, plain=not drafted)

    def note_round(self, chances: list[float], accepted: int, asked: bool) -> None:
        """A forward has checked a draft.

        Args:
            chances: What the draft said of each of its tokens, alone.
            accepted: How many came true, from the first on.
            asked: Whether the draft was asked; it may have found no token worth checking.
        """
        self.pace.forwards += 1
        self.tokens += accepted + 1
        if asked:
            spent = 1 + self._checking(len(chances)) + self._drafting(max(1, len(chances)))
            self._lose(spent - (1 + accepted))
            self.pace.note_tokens(chances, accepted)
            if spent > 1 + CHEAP:  # to look in vain may cost next to nothing
                self.pace.note_gain((1 + accepted) / spent)

    def _lose(self, forwards: float) -> None:
        self._left()  # settles the credit, which is of what was gained before
        self.lost += forwards
        self.pace.record = min(BEST, max(0.0, self.pace.record - forwards))

    def _left(self, least: float = 0.0) -> float:
        """Forwards that may still be lost. least: of the smallest draft."""
        if self._credit is None:
            self._credit = min(self.pace.record, max(CREDIT, least))
        return max(self._credit, SHARE * self.tokens) - self.lost

    def _allowed(self, drafted: int) -> bool:
        """Whether so many tokens may be drafted. At most twice as many are checked as in any forward before."""
        known = drafted == 1 or self.rows * (drafted + 1) <= 2 * self.pace.costs.largest
        return known and drafted <= LONGEST and self._drafting(drafted) + self._checking(drafted) <= self._left()

    def _plain(self) -> float:
        """Seconds of a forward over one token of each row; 0: none was seen."""
        return self.pace.costs.seconds(self.rows)

    def _checking(self, drafted: int) -> float:
        """What so many drafted tokens add to a forward."""
        costs = self.pace.costs
        return max(0.0, costs.over_one(self.rows * (drafted + 1)) / costs.over_one(self.rows) - 1)

    def _further(self, drafted: int) -> float:
        return max(0.0, self._checking(drafted + 1) - self._checking(drafted))

    def _drafting(self, tokens: int) -> float:
        """What a draft of so many tokens takes."""
        pace, plain, further = self.pace, self._plain(), 0 if self.pace.at_once else tokens - 1
        if not plain or pace.draft_first is None:
            return min(GUESSED, pace.weight) * (1 + further)
        return (pace.draft_first + (pace.draft_first if pace.draft_next is None else pace.draft_next) * further) / plain

    def _reading(self, unread: int) -> float:
        """What the draft takes to read so much, beyond its share of the prompt's time."""
        rate, plain = self.pace.draft_read, self._plain()
        if unread <= LONG_READ or not plain or rate is None:
            return 0.0
        return max(0.0, rate * unread - SHARE * self.prompt) / plain


def _mixed(old: float | None, new: float) -> float:
    """Follows lower times faster: what disturbs a time makes it longer."""
    return new if old is None else old + (0.5 if new < old else 0.1) * (min(new, 2 * old) - old)
