"""Other spellings of tensor names that a checkpoint may have: the published ones, and those of a text-only model. Knows
names only.
"""

from transformers.core_model_loading import WeightRenaming


def published_names() -> list[WeightRenaming]:
    """The prefixes of the published files, and those of a text-only `mistral4` model, to ours."""
    pairs = {
        r"^language_model\.lm_head": "lm_head",
        r"^language_model\.model": "model.language_model",
        r"^vision_tower": "model.vision_tower",
        r"^multi_modal_projector": "model.multi_modal_projector",
        r"^model\.embed_tokens": "model.language_model.embed_tokens",
        r"^model\.layers": "model.language_model.layers",
        r"^model\.norm": "model.language_model.norm",
    }
    return [WeightRenaming(theirs, ours) for theirs, ours in pairs.items()]
