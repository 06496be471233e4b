"""Training of an EAGLE draft beside a frozen model, whose hidden states are computed batch by batch and never stored.

`DraftTrainer` is transformers' Trainer with that loss: it takes the same arguments, collators and callbacks. Must not
know: where the texts come from. They should be answers of the model itself.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer

from ..cpu_matmul import is_plain_linear, linear
from ..drafts_eagle import Small4EagleConfig, Small4EagleDraft
from ..drafts_view import DraftView, Seen
from ..modeling_small4 import Small4DecoderLayer, Small4ForCausalLM

IGNORED = -100
DEPTH = 3  # tokens drafted in a row while training; each is weighed with FADING times the one before
FADING = 0.6


def new_draft(model: Small4ForCausalLM, layers: int = 2, width: int | None = None) -> Small4EagleDraft:
    """A draft to be trained for `model`, with attention as in its last layers, and float32 weights.

    Args:
        width: Of the dense layers, `intermediate_size`; default: the model's.
    """
    text = model.config.text_config.to_dict()
    kept = {name: text[name] for name in Small4EagleConfig().to_dict() if name in text and name not in _OWN}
    width = width or text["intermediate_size"]
    draft = Small4EagleDraft(Small4EagleConfig(**kept, num_hidden_layers=layers, intermediate_size=width)).float()
    size = draft.config.hidden_size
    with torch.no_grad():
        draft.eagle_linear.weight[:, size:] = torch.eye(size)  # at first the hidden state goes through
        for own, theirs in zip(draft.model.layers, model.model.language_model.layers[-layers:], strict=True):
            assert isinstance(own, Small4DecoderLayer)
            assert isinstance(theirs, Small4DecoderLayer)
            given = theirs.self_attn.state_dict()
            linears = [each for each in theirs.self_attn.children() if isinstance(each, nn.Linear)]
            if set(given) == set(own.self_attn.state_dict()) and all(is_plain_linear(each) for each in linears):
                own.self_attn.load_state_dict(given)
    return draft


_OWN = (
    "model_type", "num_hidden_layers", "intermediate_size", "first_k_dense_replace", "architectures", "dtype",
    "transformers_version", "quantization_config", "auto_map",
)  # fmt: skip


@torch.no_grad()
def seen_by(model: Small4ForCausalLM, inputs: dict[str, torch.Tensor]) -> Seen:
    """What a draft sees of `model` reading `inputs` (ids, mask, images; as `forward` takes them)."""
    view = DraftView()
    mask = inputs.get("attention_mask")
    if "position_ids" not in inputs and mask is not None:
        inputs = inputs | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    model.model(**inputs, use_cache=False, draft_view=view)
    return view.take()


def draft_loss(
    draft: nn.Module,
    head: nn.Linear,
    seen: Seen,
    labels: torch.Tensor,
    mask: torch.Tensor | None = None,
    depth: int = DEPTH,
) -> torch.Tensor:
    """Cross-entropy of the tokens drafted behind each place, `depth` of them in a row, plus the hidden states' error.

    Args:
        head: The model's.
        labels: Tokens to be drafted, int64 `[batch, length]`, `IGNORED` elsewhere: token p is drafted from the hidden
            state of token p - 2 and the embedding of token p - 1.
        mask: `[batch, length]`, 0 where padded.
    """
    embeddings, hidden = seen.embeddings[:, 1:], seen.hidden[:, :-1].float()
    positions, mask = seen.positions[:, :-1], None if mask is None else mask[:, :-1]
    total, weight, given = torch.zeros((), device=hidden.device), 1.0, hidden
    for step in range(depth):
        guessed = draft(embeddings.to(hidden.dtype), given, mask, positions)
        wanted = labels[:, 2 + step :] != IGNORED  # the first `step` places have nothing drafted before them
        own = guessed[:, step:-1]
        logits = linear(head, own[wanted].to(head.weight.dtype)).float()
        total = total + weight * F.cross_entropy(logits, labels[:, 2 + step :][wanted])
        right = seen.hidden[:, 1 + step : -1].float()
        total = total + weight * 0.1 * F.smooth_l1_loss(own[wanted], right[wanted])
        given = torch.cat((hidden[:, :1], guessed[:, :-1]), dim=1)  # what the draft itself has for these tokens
        weight *= FADING
    return total


class DraftTrainer(Trainer):
    """Trains `model`, an EAGLE draft, for `target`, which is not changed.

    Batches are those of `Small4DataCollator`: ids, mask, images, and labels on what the assistant writes.
    """

    def __init__(self, model: Small4EagleDraft, target: Small4ForCausalLM, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.target = target.eval().requires_grad_(False)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss, and with `return_outputs` an empty output beside it."""
        given = {name: value.to(self.target.device) for name, value in inputs.items() if name != "labels"}
        seen = seen_by(self.target, given)
        loss = draft_loss(
            model, self.target.lm_head, seen, inputs["labels"].to(seen.hidden.device), given.get("attention_mask")
        )
        return (loss, {}) if return_outputs else loss
