"""What a forward takes its arguments to mean. Every rule that reads more out of them than they say stands in this
table.

| what was passed | what it is taken to mean | decided by |
|---|---|---|
| a cache, also an empty one | each row is one text, whatever its positions | `packed_texts` |
| a mask of four dimensions, or a BlockMask | it says all that is seen; positions only rotate | `packed_texts`, `four_dimensional_mask` |
| position_ids and a mask `[batch, length]` | of the tokens that the mask shows, a text begins where a position does not go up; padding counts for nothing | `packed_texts` |
| position_ids alone | a text begins wherever a position is not one more than the one before it, as in transformers | `packed_texts` |
| several texts in a row | they do not see one another, and no cache is made, which only one of them could go on from | `packed_texts`, `new_cache_wanted` |
| no position_ids | positions are counted from the length of the cache, padding included, as in transformers | `counted_positions` |
| no cache, and `use_cache` (or the configuration's) | a new cache, except in training | `new_cache_wanted` |
| tokens, positions, masks, labels or images of another shape, dtype or range | a mistake: it is refused | `forward_checks` |
| a mask `[1, n]` | it holds for each row | `forward_checks.one_row_for_all` |
| inputs_embeds of another floating dtype than the embedding's, without autocast | meant: they are converted | `forward_checks.as_computed` |
| a cache of other rows than the batch, or of keys for each head (prefix tuning) | a mistake: it is refused | `check_cache` |
| a filled cache of one row for each prompt, for beams or several returned sequences | its rows are repeated | `repeat_rows` |
| tokens beyond `max_position_embeddings` | meant, with a warning | `warn_beyond_positions` |
| images without input_ids | they go where the embedding of `[IMG]` stands | `Small4Model._image_places` |
| many new tokens behind a filled cache | the same attention, block by block | `attention_blocks.long_prefill` |
| few new tokens over many cached ones | the same attention, over latents | `Small4Attention.absorbing_pays` |
| a prompt of more than LONG_PROMPT tokens for `generate` | read in chunks, unless `prefill_chunk_size` says how | `Small4PrefillMixin._prefill` |

Must not know: layers, how attention is computed.
"""

import warnings

import torch
from transformers.cache_utils import Cache
from transformers.masking_utils import find_packed_sequence_indices
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing

logger = logging.get_logger(__name__)


def packed_texts(
    position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, cache: Cache | None, batch: int
) -> torch.Tensor | None:
    """Number of the text in its row that each token belongs to, `[batch, length]`; None where each row is one text.

    Args:
        position_ids: `[batch or 1, length]`, or None.
        attention_mask: As the caller gave it: None, `[batch, length]`, four dimensions, or an implementation's own
            kind.
        cache: As the caller gave it.
    """
    if position_ids is None or cache is not None:
        return None
    position_ids = position_ids.expand(batch, -1)
    if attention_mask is None:
        return find_packed_sequence_indices(position_ids)
    if not _is_flat(attention_mask) or attention_mask.shape != position_ids.shape:
        return None
    shown = attention_mask.bool()
    places = torch.arange(shown.shape[1], device=shown.device).expand_as(position_ids)
    last_shown = torch.where(shown, places, -1).cummax(dim=-1).values  # of the tokens up to each
    before = torch.nn.functional.pad(last_shown[:, :-1], (1, 0), value=-1)
    goes_up = (before < 0) | (position_ids > position_ids.gather(1, before.clamp(min=0)))
    texts = (shown & ~goes_up).cumsum(-1)
    return None if not is_tracing(texts) and not texts[:, -1].any() else texts


def new_cache_wanted(use_cache: bool | None, training: bool, packed: torch.Tensor | None) -> bool:
    """Whether a forward that was given no cache makes one."""
    if use_cache and packed is not None and not training:
        logger.warning_once(
            "position_ids start anew within a row, so the row is read as several packed texts and no cache is "
            "returned. Pass use_cache=False "
            "if that is meant. If the row is one text with padding, pass its attention_mask."
        )
    return bool(use_cache) and packed is None and not training


def counted_positions(cache: Cache | None, length: int, device: torch.device) -> torch.Tensor:
    """Positions `[1, length]` of tokens that come behind those in the cache."""
    seen = cache.get_seq_length() if cache is not None else 0
    return (torch.arange(length, device=device) + seen)[None]


def check_cache(cache: Cache | None, batch: int, width: int) -> None:
    """Refuse a filled cache that cannot be gone on with.

    Args:
        width: Numbers that are cached per token and layer, as one key of one head.

    Raises:
        ValueError: It holds another number of rows than the batch has, or keys and values of heads.
    """
    rows, heads, held = _shape(cache)
    if rows is None:
        return
    if heads != 1 or (held is not None and held > width):
        raise ValueError(
            f"The cache holds keys of {heads} heads and {held} numbers, but latent attention caches one latent of "
            f"{width} numbers per token. "
            "Fill the cache with this model. Prefix tuning, which makes keys and values for every head, is not "
            "possible; prompt tuning and "
            "LoRA are."
        )
    if rows != batch:
        raise ValueError(f"The cache holds {rows} rows, but the batch has {batch}; fill a cache with the same rows.")


def repeat_rows(cache: Cache | None, prompts: int, times: int) -> None:
    """Make a filled cache fit a batch in which each prompt stands so many times, as beams and returned sequences do.

    Raises:
        ValueError: It holds neither a row for each prompt nor one for each row of the batch, or it cannot be repeated.
    """
    rows, _, _ = _shape(cache)
    if cache is None or rows is None or rows == prompts * times:
        return
    if rows != prompts:
        raise ValueError(f"The cache holds {rows} rows for {prompts} prompts; fill a cache with the same prompts.")
    try:
        cache.batch_repeat_interleave(times)
    except AttributeError:
        raise ValueError(
            f"A filled {type(cache).__name__} cannot be repeated for num_beams or num_return_sequences; pass a "
            "LatentCache, or repeat the "
            "prompts before the cache is filled."
        ) from None


def warn_beyond_positions(limit: int, tokens: int, what: str) -> None:
    """Warn that there are to be more tokens than positions. what: a clause about `tokens`, with their number."""
    if tokens > limit:
        warnings.warn(
            f"{what}, but the model has {limit} positions (max_position_embeddings); beyond them its answers get "
            "worse.",
            UserWarning,
            stacklevel=3,
        )


def _shape(cache: Cache | None) -> tuple[int | None, int | None, int | None]:
    """Rows, heads and numbers per token of a filled cache of transformers' or our kind; None for what it does not
    say.
    """
    layer = next(iter(getattr(cache, "layers", None) or ()), None)
    if layer is None or is_tracing() or not layer.is_initialized or int(layer.get_seq_length()) == 0:
        return None, None, None
    if hasattr(layer, "stores"):
        return layer.batch_size, 1, None
    if not isinstance(layer.keys, torch.Tensor) or layer.keys.ndim != 4:
        return None, None, None
    return layer.keys.shape[0], layer.keys.shape[1], layer.keys.shape[3]


def _is_flat(mask: torch.Tensor) -> bool:
    return isinstance(mask, torch.Tensor) and mask.ndim == 2
