"""The KV cache of a conversation, on disk: its tokens and their latents, for `--save-prefix` and `--load-prefix`.

A file can only be used with the weights that it was computed with, and it names them. Must not know: messages,
terminals.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ..cache import LatentCache, LatentLayer
from ..configuration_small4 import Small4Config
from ..files_saving import replacing

FORMAT = "small4-prefix-1"
SAMPLE = 64  # elements at either end of a tensor, by which weights are told apart


def prefix_key(
    config: Small4Config, ids: list[int], pixels: torch.Tensor | None, sizes: torch.Tensor | None
) -> tuple[list[int], list[tuple[int, int]]]:
    """One number for each token of a prompt, the same for the same beginning only: its id, or what an image shows; and
    where the tokens of each image begin and end.

    Args:
        pixels, sizes: `[images, 3, H, W]` and `[images, 2]` of the processor, None without images.
    """
    if pixels is None or sizes is None:
        return list(ids), []
    unit = config.vision_config.patch_size * config.spatial_merge_size
    key, spans, place = list(ids), [], 0
    for image, (height, width) in zip(pixels, sizes.tolist(), strict=True):
        start = ids.index(config.image_token_index, place)
        place = start + (height // unit) * (width // unit + 1)
        shown = image[:, :height, :width].contiguous().float().cpu().numpy().tobytes()
        digest = int.from_bytes(hashlib.sha256(shown + f"{height}x{width}".encode()).digest()[:7], "big")
        key[start:place] = [-1 - (digest + step) % 2**55 for step in range(place - start)]
        spans.append((start, place))
    return key, spans


def save_prefix(path: Path, key: list[int], cache: LatentCache, model: PreTrainedModel) -> None:
    """Writes what a cache holds of `key`. The file is complete or not there.

    Raises:
        ValueError: the cache keeps no plain latents.
        OSError: the file cannot be written.
    """
    if not all(type(layer) is LatentLayer for layer in cache.layers):
        raise ValueError("--save-prefix needs a cache of plain latents; leave --preset out.")
    length = int(cache.get_seq_length())
    tensors = {"key": torch.tensor(key[:length], dtype=torch.int64)}
    for index, layer in enumerate(cache.layers):
        tensors[f"layer.{index}"] = layer.keys.detach().cpu().contiguous()
    with replacing(path) as partial:
        save_file(tensors, partial, {"format": FORMAT, "weights": fingerprint(model)})


def load_prefix(path: Path, model: PreTrainedModel) -> tuple[list[int], LatentCache]:
    """The tokens of a file and a cache that holds them.

    Raises:
        ValueError: the file was not written by `save_prefix`, is damaged, or was computed with other weights.
        OSError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file to load a prefix from.")
    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} was not written by --save-prefix; save one with this version.")
            if metadata.get("weights") != fingerprint(model):
                raise ValueError(
                    f"{path} was saved with another model, or with other weights or another dtype; save it again."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or was not written by --save-prefix ({error}).") from None
    cache, key = LatentCache(model.config), tensors["key"].tolist()
    for index, layer in enumerate(cache.layers):
        tokens = tensors.get(f"layer.{index}")
        if tokens is None or tokens.ndim != 4 or tokens.shape[2] != len(key):
            raise ValueError(f"{path} is damaged: its layers do not hold the tokens that it lists.")
        layer.update(tokens.to(_device_of(model, index)))
    return key, cache


def fingerprint(model: PreTrainedModel) -> str:
    """Tells weights apart by the ends of every tensor, its shape and its dtype, and by the configuration of the text
    model.
    """
    config = model.config.get_text_config().to_dict()
    digest = hashlib.sha256(
        json.dumps({name: config[name] for name in sorted(config) if name[0] != "_"}, default=str).encode()
    )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            flat = tensor.detach().flatten()
            for end in (flat[:SAMPLE], flat[-SAMPLE:]):
                digest.update(np.ascontiguousarray(end.cpu().contiguous().view(torch.uint8).numpy()).tobytes())
    return digest.hexdigest()


def _device_of(model: PreTrainedModel, layer: int) -> torch.device:
    return next(model.model.language_model.layers[layer].parameters()).device
