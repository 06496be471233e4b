"""What `generate(draft=...)` may be: a name or folder, whose files tell the kind of draft, or a draft that is loaded.

A draft loaded by name, and what its use has shown of its pace, stay with the model for the next call. Must not know:
how drafting works.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .drafts_eagle import Small4EagleDraft
from .drafts_eagle_small import SmallEagle
from .drafts_pace import Costs, Pace
from .drafts_reading import read_draft
from .drafts_sources import Drafting, EagleDrafting, LookupDrafting, ModelDrafting

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
        kept[key] = source, Pace(_costs(model)), small
    return kept[key]


def _costs(model: PreTrainedModel) -> Costs:
    text = model.config.get_text_config()
    routed = text.num_hidden_layers - text.first_k_dense_replace
    return Costs(text.n_routed_experts, text.num_experts_per_tok, routed)


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
