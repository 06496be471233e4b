"""What a forward pass refuses among its arguments, in a sentence, before anything is computed.

Shapes and dtypes are looked at on every device, values only where they lie on the CPU: to look at those of a GPU would
wait for it. Nothing is looked at while a graph is traced. What arguments mean: `forward_rules`. Must not know: layers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.utils.import_utils import is_tracing

from .files_reading import shown

IGNORED = -100  # a label that carries no loss
_IDS = (torch.int32, torch.int64)


def check_tokens(
    input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, embedding: nn.Module | None, width: int
) -> None:
    """Refuse tokens that cannot be read.

    Args:
        embedding: The model's; ids are below its `num_embeddings`.
        width: `hidden_size`.

    Raises:
        ValueError: Both or none of the two, another dtype or shape than int `[batch, length]` or float
            `[batch, length, width]`, no token at all, or an id that the vocabulary does not have.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give exactly one of input_ids and inputs_embeds.")
    if input_ids is None:
        _check_embeddings(inputs_embeds, width)
        return
    _check_ids(input_ids, embedding)


def check_prompt(arguments: Mapping[str, Any], embedding: nn.Module | None, width: int) -> None:
    """Refuse what `generate` cannot begin from. Without ids and embeddings it begins from the BOS token.

    Args:
        arguments: Those of `generate`, of which `inputs` or `input_ids`, `inputs_embeds` and `attention_mask` are read.

    Raises:
        ValueError: As `check_tokens`, other rows of ids than of embeddings, or a mask that does not cover the prompt.
    """
    ids, embeds, mask = (arguments.get(name) for name in ("inputs", "inputs_embeds", "attention_mask"))
    ids = arguments.get("input_ids") if ids is None else ids
    if isinstance(ids, Mapping):
        raise ValueError(f"generate was given a {type(ids).__name__} in place of ids; pass its entries: **inputs.")
    if embeds is not None:
        _check_embeddings(embeds, width)
    if ids is not None and not (embeds is not None and isinstance(ids, torch.Tensor) and ids.numel() == 0):
        _check_ids(ids, embedding)
        if embeds is not None and len(ids) != len(embeds):
            raise ValueError(f"input_ids have {len(ids)} rows, but inputs_embeds have {len(embeds)}.")
    prompt = ids if embeds is None else embeds
    if mask is None or prompt is None or is_tracing(prompt):
        return
    _check_tensor("attention_mask", mask, "[batch, length]", 2)
    if mask.shape[0] not in (1, len(prompt)) or mask.shape[1] < prompt.shape[1]:
        raise ValueError(
            f"attention_mask has the shape {list(mask.shape)}, but the prompt is {list(prompt.shape[:2])}; give 1 for "
            "each token that is seen and 0 for padding, those in the cache included."
        )
    _check_flat_values(mask)


def _check_ids(input_ids: torch.Tensor, embedding: nn.Module | None) -> None:
    if is_tracing(input_ids):
        return
    _check_tensor("input_ids", input_ids, "[batch, length]", 2)
    if input_ids.dtype not in _IDS:
        raise ValueError(f"input_ids must be of torch.int64 or torch.int32, but are {input_ids.dtype}.")
    vocabulary = getattr(embedding, "num_embeddings", None)
    if vocabulary is not None and _is_readable(input_ids):
        low, high = (int(each) for each in torch.aminmax(input_ids))
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"input_ids hold {low if low < 0 else high}, but ids of this model are 0 to {vocabulary - 1}. Padding "
                f"has the id of the pad token and is 0 in attention_mask; {IGNORED} stands in labels only."
            )


def _check_embeddings(inputs_embeds: object, width: int) -> None:
    if is_tracing(inputs_embeds):
        return
    tensor = _check_tensor("inputs_embeds", inputs_embeds, f"[batch, length, {width}]", 3)
    if not tensor.dtype.is_floating_point:
        raise ValueError(f"inputs_embeds must be of a floating dtype, but are {tensor.dtype}; ids go to input_ids.")
    if tensor.shape[-1] != width:
        raise ValueError(f"inputs_embeds have {tensor.shape[-1]} numbers per token, but hidden_size is {width}.")


def as_computed(inputs_embeds: torch.Tensor, embedding: nn.Module | None) -> torch.Tensor:
    """Embeddings of a caller in the dtype that the model's own have; what autocast converts stays as it is."""
    dtype, device = getattr(getattr(embedding, "weight", None), "dtype", None), inputs_embeds.device.type
    if dtype in (None, inputs_embeds.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        return inputs_embeds
    converting = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return inputs_embeds if converting and inputs_embeds.dtype != torch.float64 else inputs_embeds.to(dtype)


def check_positions(
    position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, batch: int, length: int
) -> None:
    """Refuse positions that are not one number for each token.

    Raises:
        ValueError: Another shape than `[batch or 1, length]`, another dtype than a number's, or a negative position of
            a token that is no padding.
    """
    if position_ids is None or is_tracing(position_ids):
        return
    _check_tensor("position_ids", position_ids, f"[{batch}, {length}]", 2)
    if position_ids.dtype == torch.bool or position_ids.dtype.is_complex:
        raise ValueError(f"position_ids must be integers, but are {position_ids.dtype}.")
    if position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != length:
        raise ValueError(
            f"position_ids have the shape {list(position_ids.shape)}, but there are [{batch}, {length}] tokens; give "
            "one position for each, without those that are cached."
        )
    if not _is_readable(position_ids) or not bool((position_ids < 0).any()):
        return
    below = (position_ids < 0).expand(batch, -1)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        below = below & attention_mask[:, -length:].bool().to(below.device)
    if attention_mask is None or bool(below.any()):
        raise ValueError(
            f"position_ids hold {position_ids.min().item()} for a token; positions are 0 or more. Those of padding may "
            "be negative if attention_mask is given and is 0 there."
        )


def check_mask(attention_mask: object, cache: Cache | None, batch: int, length: int) -> None:
    """Refuse a mask that does not say of each token what it sees.

    Raises:
        ValueError: A mask that is neither `[batch, n]`, with n of at least all cached and new tokens, nor of four
            dimensions that fit them; or values that are no such mask's.
    """
    if attention_mask is None or is_tracing(attention_mask):
        return
    if isinstance(attention_mask, (list, tuple, np.ndarray)):
        raise ValueError(f"attention_mask must be a tensor, but is a {type(attention_mask).__name__}.")
    if not isinstance(attention_mask, torch.Tensor):
        return  # a form of its own that an attention implementation knows
    shape = list(attention_mask.shape)
    if len(shape) == 4:
        _check_dense_mask(attention_mask, cache, batch, length)
        return
    if len(shape) != 2:
        raise ValueError(
            f"attention_mask has the shape {shape}; it must be [batch, cached and new tokens], 1 where a token is "
            "seen, or [batch, 1, new tokens, cached and new tokens]."
        )
    if attention_mask.dtype.is_complex:
        raise ValueError(f"attention_mask must be bool or numbers, but is {attention_mask.dtype}.")
    if shape[0] not in (1, batch):
        raise ValueError(f"attention_mask has {shape[0]} rows, but the batch has {batch}; give one row for each.")
    seen = cache.get_seq_length() if cache is not None and hasattr(cache, "get_seq_length") else 0
    if isinstance(seen, int) and shape[1] < seen + length:
        raise ValueError(
            f"attention_mask has {shape[1]} columns for {seen} cached and {length} new tokens; it must cover both."
        )
    _check_flat_values(attention_mask)


def _check_flat_values(mask: torch.Tensor) -> None:
    if not _is_readable(mask) or mask.dtype == torch.bool:
        return
    wrong = (mask < 0) | ~mask.isfinite()
    if bool(wrong.any()):
        raise ValueError(
            f"attention_mask holds {mask[wrong][0].item()}; with two dimensions it is 1 where a token is seen and 0 "
            "where not. A mask that is added to the scores needs four: [batch, 1, new tokens, all tokens]."
        )


def _check_dense_mask(mask: torch.Tensor, cache: Cache | None, batch: int, length: int) -> None:
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise ValueError(
            f"An attention_mask of four dimensions must be bool (True: is seen) or of a floating dtype (added to the "
            f"scores), but is {mask.dtype}."
        )
    sizes = getattr(cache, "get_mask_sizes", None)
    keys = sizes(length, 0)[0] if sizes is not None else length
    shape = list(mask.shape)
    if shape[0] not in (1, batch) or shape[2] not in (1, length) or (isinstance(keys, int) and shape[3] != keys):
        raise ValueError(
            f"attention_mask has the shape {shape}, but must be [{batch}, 1, {length}, {keys}]: for each new token, "
            "what it sees of all that is cached and new."
        )


def one_row_for_all(attention_mask: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    """A flat mask of one row as one row for each of the batch; anything else as it is."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2 or is_tracing(attention_mask):
        return attention_mask
    return attention_mask.expand(batch, -1) if attention_mask.shape[0] == 1 else attention_mask


def check_labels(
    labels: object,
    batch: int,
    length: int,
    logits_to_keep: int | torch.Tensor,
    vocabulary: int,
    ignored: int = IGNORED,
) -> None:
    """Refuse labels that are not one for each position that has logits.

    Args:
        logits_to_keep: Those positions, as in the forward.
        vocabulary, ignored: A label is 0 to `vocabulary - 1`, or `ignored`.

    Raises:
        ValueError: Another shape than `[batch, positions]` or dtype than int64, or a label that is none of these.
    """
    if labels is None or is_tracing(labels):
        return
    kept = _positions_kept(logits_to_keep, length)
    shape = list(labels.shape) if isinstance(labels, torch.Tensor) else None
    if not isinstance(labels, torch.Tensor) or (shape != [batch, kept] and not (batch == 1 and shape == [kept])):
        found = shape if shape is not None else f"a {type(labels).__name__}"
        raise ValueError(
            f"labels must be a tensor [{batch}, {kept}], one label for each position that has logits, but are {found}."
        )
    if labels.dtype not in (torch.int64, torch.uint8):
        raise ValueError(f"labels must be of torch.int64, but are {labels.dtype}.")
    if _is_readable(labels):
        wrong = (labels != ignored) & ((labels < 0) | (labels >= vocabulary))
        if bool(wrong.any()):
            raise ValueError(
                f"labels hold {labels[wrong][0].item()}; a label is 0 to {vocabulary - 1}, or {ignored} where no loss "
                "is wanted."
            )


def _positions_kept(logits_to_keep: object, length: int) -> int:
    if isinstance(logits_to_keep, torch.Tensor):
        return logits_to_keep.numel()
    if not isinstance(logits_to_keep, int):
        raise ValueError(f"logits_to_keep must be an integer or a tensor of indices, but is {shown(logits_to_keep)}.")
    return len(range(length)[-logits_to_keep:])


def check_pixels(pixel_values: torch.Tensor, image_sizes: object, channels: int) -> None:
    """Refuse what is no batch of images.

    Raises:
        ValueError: Another shape than `[images, channels, height, width]`, values that are not normalized, or sizes
            that are no pairs.
    """
    if is_tracing(pixel_values):
        return
    tensor = _check_tensor("pixel_values", pixel_values, f"[images, {channels}, height, width]", 4)
    if tensor.shape[1] != channels:
        raise ValueError(f"pixel_values have {tensor.shape[1]} channels, but the vision tower reads {channels}.")
    if not tensor.dtype.is_floating_point:
        raise ValueError(
            f"pixel_values are {tensor.dtype}; they must be of a floating dtype, normalized as by Small4ImageProcessor."
        )
    if image_sizes is not None and not _are_pairs(image_sizes):
        raise ValueError(
            f"image_sizes must be [images, 2], the height and width of each in pixels, but are {shown(image_sizes)}."
        )


def _are_pairs(sizes: object) -> bool:
    if isinstance(sizes, (torch.Tensor, np.ndarray)):
        return sizes.ndim == 2 and sizes.shape[1] == 2
    return isinstance(sizes, (list, tuple)) and all(hasattr(size, "__len__") and len(size) == 2 for size in sizes)


def _check_tensor(name: str, value: object, shape: str, rank: int) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor {shape}, but are a {type(value).__name__}.")
    if value.ndim != rank:
        raise ValueError(f"{name} must be {shape}, but have the shape {list(value.shape)}.")
    if value.numel() == 0 and name != "position_ids":
        raise ValueError(f"{name} have the shape {list(value.shape)}: there is nothing to read.")
    return value


def _is_readable(tensor: torch.Tensor) -> bool:
    """Whether values can be looked at for nothing: of a plain tensor on the CPU."""
    return type(tensor) is torch.Tensor and tensor.device.type == "cpu"
