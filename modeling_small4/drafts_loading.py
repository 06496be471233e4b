"""What `generate(draft=...)` may be: a name or folder, whose files tell the kind of draft, or a draft that is loaded.

A draft loaded by name, and what its use has shown of its pace, stay with the model for the next call. Must not know:
how drafting works.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .configuration_small4 import Small4TextConfig
from .drafts_costs import Costs
from .drafts_eagle import Small4EagleDraft
from .drafts_eagle_small import SmallEagle
from .drafts_pace import Pace
from .drafts_reading import read_draft
from .drafts_sources import Drafting, EagleDrafting, LookupDrafting, ModelDrafting
from .experts_offloaded import Small4OffloadedExperts

PROMPT_LOOKUP = "prompt_lookup"
_KEPT = "_small4_drafts"  # on the model, by what was given


def drafting_for(model: PreTrainedModel, draft: object) -> Drafting:
    """How `draft` drafts in one call of `model.generate`.

    Args:
        draft: "prompt_lookup"; a folder or Hub name of an EAGLE draft (official layout or ours) or of a small model; or
            one of these, loaded.

    Raises:
        ValueError: It is none of these, or of another vocabulary or width than the model.
    """
    source, pace, small = _kept(model, draft)
    if source == PROMPT_LOOKUP:
        return LookupDrafting(pace)
    if isinstance(draft, (str, Path)):
        source.to(model.get_input_embeddings().weight.device)  # the model may have been moved since
    if isinstance(source, Small4EagleDraft):
        if not isinstance(draft, (str, Path)) and SmallEagle.fits(source):  # its weights may have changed
            small = SmallEagle(source, model.get_output_embeddings().weight)
        return EagleDrafting(source, model, pace, small)
    return ModelDrafting(source, pace)


def paces(model: PreTrainedModel) -> dict[str, Pace]:
    """What each draft used with this model has shown, by its name."""
    return {_name(draft): pace for draft, (_, pace, _) in model.__dict__.get(_KEPT, {}).items()}


def _name(draft: object) -> str:
    return draft if isinstance(draft, str) else type(draft).__name__


def _kept(model: PreTrainedModel, draft: object) -> tuple[Any, Pace, SmallEagle | None]:
    kept = model.__dict__.setdefault(_KEPT, {})
    if not isinstance(draft, (str, Path, PreTrainedModel)):
        raise ValueError(
            f"draft is {draft!r}; give a folder or Hub name of an EAGLE draft or a small model, one of these "
            f"loaded, or {PROMPT_LOOKUP!r}."
        )
    key = str(draft) if isinstance(draft, (str, Path)) else draft
    if key not in kept:
        source = key if key == PROMPT_LOOKUP else _loaded(model, key)
        small = None
        if isinstance(source, Small4EagleDraft) and isinstance(key, str) and SmallEagle.fits(source):
            small = SmallEagle(source, model.get_output_embeddings().weight)
        kept[key] = source, Pace(_costs(model), _weight(source, model), source == PROMPT_LOOKUP), small
    return kept[key]


def _weight(source: str | PreTrainedModel, model: PreTrainedModel) -> float:
    """Weights that a draft reads for a token, over those that the model reads."""
    if isinstance(source, str):
        return 0.0
    text, theirs = model.config.get_text_config(), source.config.get_text_config()
    head = text.hidden_size * text.vocab_size
    if isinstance(theirs, Small4TextConfig) and not isinstance(source, Small4EagleDraft):
        own = _read_for_a_token(theirs) + theirs.hidden_size * theirs.vocab_size
    else:
        own = sum(each.numel() for each in source.parameters())
        own += head if source.get_output_embeddings() is None else 0  # the model's serves
    return own / (_read_for_a_token(text) + head)


def _costs(model: PreTrainedModel) -> Costs:
    text = model.config.get_text_config()
    layers = text.num_hidden_layers - text.first_k_dense_replace
    routed = 3 * text.hidden_size * text.moe_intermediate_size * text.num_experts_per_tok * layers
    share = routed / (_read_for_a_token(text) + text.hidden_size * text.vocab_size)
    return Costs(text.n_routed_experts, text.num_experts_per_tok, layers, 1.0 if _reads_from_disk(model) else share)


def _reads_from_disk(model: PreTrainedModel) -> bool:
    return any(isinstance(module, Small4OffloadedExperts) for module in model.modules())


def _read_for_a_token(text: Small4TextConfig) -> int:
    """Weights of the layers, of the experts that one token chooses."""
    heads, rank, query = text.num_attention_heads, text.kv_lora_rank, text.q_lora_rank
    nope, rope, value, size = text.qk_nope_head_dim, text.qk_rope_head_dim, text.v_head_dim, text.hidden_size
    queries = heads * (nope + rope) * (query or size) + (query or 0) * size
    attention = queries + size * (rank + rope) + rank * heads * (nope + value) + heads * value * size
    chosen = (text.num_experts_per_tok + text.n_shared_experts) * text.moe_intermediate_size
    dense = min(text.first_k_dense_replace, text.num_hidden_layers)
    widths = dense * text.intermediate_size + (text.num_hidden_layers - dense) * chosen
    return text.num_hidden_layers * attention + 3 * size * widths


def _loaded(model: PreTrainedModel, draft: str | PreTrainedModel) -> PreTrainedModel:
    if isinstance(draft, str):
        draft = read_draft(draft, model.dtype).eval()
    own, theirs = model.config.get_text_config(), draft.config.get_text_config()
    for name in ("vocab_size", *(("hidden_size",) if isinstance(draft, Small4EagleDraft) else ())):
        if getattr(own, name) != getattr(theirs, name):
            raise ValueError(
                f"The draft has {name} {getattr(theirs, name)} and the model {getattr(own, name)}; a draft has to be "
                "made for the model."
            )
    return draft
