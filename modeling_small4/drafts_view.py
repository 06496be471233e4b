"""What a draft sees of the model it drafts for: embeddings, positions and hidden states of the tokens that were read.

The text model fills it in each forward that is given one; a draft takes out what it has not read yet. Must not know:
how drafts are made.
"""

from dataclasses import dataclass, field

import torch


@dataclass
class Seen:
    """Tokens in the order in which they were read.

    Attributes:
        embeddings: `[batch, length, hidden_size]`, image tokens in their places.
        positions: int64 `[batch, length]`.
        hidden: Hidden states behind the final norm `[batch, length, hidden_size]`, or those behind the layers asked
            for, side by side `[batch, length, layers * hidden_size]`.
    """

    embeddings: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor

    def __len__(self) -> int:
        return self.hidden.shape[1]

    def first(self, tokens: int) -> "Seen":
        return Seen(self.embeddings[:, :tokens], self.positions[:, :tokens], self.hidden[:, :tokens])


@dataclass
class DraftView:
    """Collects what forwards show.

    Attributes:
        layers: Layers whose outputs are wanted, from 0; empty: the hidden states behind the final norm.
        forwards: What was shown and not taken yet, one for each forward.
    """

    layers: tuple[int, ...] = ()
    forwards: list[Seen] = field(default_factory=list)

    def __len__(self) -> int:
        """Tokens shown and not taken yet."""
        return sum(len(seen) for seen in self.forwards)

    def show(self, embeddings: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor) -> None:
        """Called by the text model at the end of a forward; see `Seen` for the shapes."""
        self.forwards.append(Seen(embeddings, positions.expand(embeddings.shape[0], -1), hidden))

    def forget(self, tokens: int) -> None:
        """Take back the last tokens shown, which turned out wrong."""
        if tokens:
            last = self.forwards.pop()
            self.forwards.append(last.first(len(last) - tokens))

    def take(self) -> Seen:
        """All that was shown since the last call."""
        shown, self.forwards = self.forwards, []
        if len(shown) == 1:
            return shown[0]
        parts = ([getattr(each, name) for each in shown] for name in ("embeddings", "positions", "hidden"))
        return Seen(*(torch.cat(part, dim=1) for part in parts))
