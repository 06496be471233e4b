"""What `generate(draft=...)` may be: a name or folder, whose files tell the kind of draft, or a draft that is loaded.

A draft loaded by name, and what its use has shown of its pace, stay with the model for the next call. Must not know:
how drafting works.
"""

from pathlib import Path
from typing import Any, TypeAlias

from transformers import MuseGlimmerAssistantModel, PreTrainedModel

from .configuration_small4 import Small4TextConfig
from .drafts_costs import Costs
from .drafts_dflash import WORKS, DFlashDraft
from .drafts_eagle import Small4EagleDraft
from .drafts_eagle_small import SmallEagle
from .drafts_pace import Pace
from .drafts_reading import read_draft
from .drafts_sources import DFlashDrafting, Drafting, EagleDrafting, LookupDrafting, ModelDrafting
from .experts_offloaded import Small4OffloadedExperts
from .files_reading import shown

PROMPT_LOOKUP = "prompt_lookup"
Source: TypeAlias = PreTrainedModel | DFlashDraft
_KEPT = "_small4_drafts"  # on the model, by what was given


def drafting_for(model: PreTrainedModel, draft: object) -> Drafting:
    """How `draft` drafts in one call of `model.generate`.

    Args:
        draft: "prompt_lookup"; a folder or Hub name of an EAGLE draft (official layout or ours), of a DFlash draft or
            of a small model; or one of these, loaded.

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
    if isinstance(source, DFlashDraft):
        return DFlashDrafting(source, model, pace)
    return ModelDrafting(source, pace)


def paces(model: PreTrainedModel) -> dict[str, Pace]:
    """What each draft used with this model has shown, by its name."""
    return {_name(draft): pace for draft, (_, pace, _) in model.__dict__.get(_KEPT, {}).items()}


def _name(draft: object) -> str:
    return draft if isinstance(draft, str) else type(draft).__name__


def _kept(model: PreTrainedModel, draft: object) -> tuple[Any, Pace, SmallEagle | None]:
    kept = model.__dict__.setdefault(_KEPT, {})
    if not isinstance(draft, (str, Path, PreTrainedModel, DFlashDraft)):
        raise ValueError(f"draft is {shown(draft)}; {WORKS}, as a folder, a Hub name or loaded.")
    key = str(draft) if isinstance(draft, (str, Path)) else draft
    if key not in kept:
        source = key if key == PROMPT_LOOKUP else _loaded(model, key)
        small = None
        if isinstance(source, Small4EagleDraft) and isinstance(key, str) and SmallEagle.fits(source):
            small = SmallEagle(source, model.get_output_embeddings().weight)
        kept[key] = (
            source,
            Pace(_costs(model), _weight(source, model), source == PROMPT_LOOKUP or isinstance(source, DFlashDraft)),
            small,
        )
    return kept[key]


def _weight(source: str | Source, model: PreTrainedModel) -> float:
    """Weights that a draft reads for a token, over those that the model reads."""
    if isinstance(source, str):
        return 0.0
    text, theirs = model.config.get_text_config(), source.config.get_text_config()
    head = text.hidden_size * text.vocab_size
    if isinstance(theirs, Small4TextConfig) and not isinstance(source, Small4EagleDraft):
        own = _read_for_a_token(theirs) + theirs.hidden_size * theirs.vocab_size
    else:
        own = sum(each.numel() for each in source.parameters())
        output = source.head if isinstance(source, DFlashDraft) else source.get_output_embeddings()
        own += head if output is None else 0  # the model's serves
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


def _loaded(model: PreTrainedModel, draft: str | Source) -> Source:
    if isinstance(draft, str):
        draft = read_draft(draft, model.dtype).eval()
    elif isinstance(draft, MuseGlimmerAssistantModel):
        draft = DFlashDraft.of(draft)
    own, theirs = model.config.get_text_config(), draft.config.get_text_config()
    names = ("hidden_size",) if isinstance(draft, DFlashDraft) else ("vocab_size",)
    for name in ("vocab_size", "hidden_size") if isinstance(draft, Small4EagleDraft) else names:
        if getattr(own, name) != getattr(theirs, name):
            raise ValueError(
                f"The draft has {name} {getattr(theirs, name)} and the model {getattr(own, name)}; a draft has to be "
                "made for the model."
            )
    if isinstance(draft, DFlashDraft):
        _check_dflash(own, draft)
    return draft


def _check_dflash(own: Small4TextConfig, draft: DFlashDraft) -> None:
    rules, layers = draft.rules, list(draft.rules.layers)
    if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= own.num_hidden_layers:
        raise ValueError(
            f"The draft reads the layers {layers} and the model has {own.num_hidden_layers}; a draft has to be made "
            "for the model, and names its layers in order."
        )
    ids = int(draft.ids.max()) if draft.ids is not None else 0 if draft.head is None else draft.head.out_features - 1
    rows = own.vocab_size if draft.embeddings is None else draft.embeddings.num_embeddings
    if max(rules.mask, ids) >= own.vocab_size or rows < own.vocab_size:
        raise ValueError(
            f"The draft knows the token ids up to {max(rules.mask, ids, rows - 1)} and the model has {own.vocab_size} "
            "tokens; a draft has to be made for the model."
        )
