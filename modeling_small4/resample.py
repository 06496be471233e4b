"""Bicubic resampling of images to normalised float tensors, as mistral-common's OpenCV call computes it.

Cubic kernel with a = -0.75, half-pixel centres, no antialiasing, edges repeated, float32 and no clamping. Each axis is
a banded matrix; blocks of its rows are dense enough for matrix products. Must not know: files, tokens, patches.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

_BLOCK = 32


class _Axis(NamedTuple):
    """One axis: `needed` source positions (None: all), then blocks (begin, end, first source, last source + 1, weights
    [end - begin, last - first])."""

    needed: torch.Tensor | None
    blocks: list[tuple[int, int, int, int, torch.Tensor]]


def resample(image: Image.Image, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Resizes an RGB image and normalises it by `(value / 255 - mean) / std`.

    Args:
        image: PIL image of mode "RGB", or "L" standing for three equal channels.
        size: (height, width) of the result in pixels.
        mean, std: one number for each of the three channels.

    Returns:
        float32 [3, height, width].
    """
    height, width = size
    rows, columns = _axis(image.height, height), _axis(image.width, width)
    out = torch.empty(3, height, width)
    planes = image.split()
    middle: torch.Tensor | None = None
    for channel in range(3):
        if channel < len(planes):
            middle = _plane(planes[channel], rows, columns, height)
        assert middle is not None
        scale = 1 / (255 * std[channel])
        for begin, end, first, last, weights in columns.blocks:
            torch.mm(middle[:, first:last], (weights * scale).t(), out=out[channel, :, begin:end])
        out[channel] -= mean[channel] / std[channel]
    return out


def _plane(plane: Image.Image, rows: _Axis, columns: _Axis, height: int) -> torch.Tensor:
    """One channel resized along its height: uint8 image -> float32 [height, needed columns]."""
    pixels = torch.frombuffer(bytearray(plane.tobytes()), dtype=torch.uint8).view(plane.height, plane.width)
    if rows.needed is not None:
        pixels = pixels.index_select(0, rows.needed)
    if columns.needed is not None:
        pixels = pixels.index_select(1, columns.needed)
    out = torch.empty(height, pixels.shape[1])
    for begin, end, first, last, weights in rows.blocks:
        torch.mm(weights, pixels[first:last].float(), out=out[begin:end])
    return out


@lru_cache(maxsize=256)
def _axis(source: int, target: int) -> _Axis:
    """The weights that take `source` samples to `target`. Coordinates are float64, as in OpenCV."""
    index, weight = _taps(source, target)
    needed = None
    if source > 4 * target:  # most samples are never looked at
        positions, index = np.unique(index, return_inverse=True)
        index = index.reshape(weight.shape)
        needed = torch.from_numpy(positions)
    blocks = []
    for begin in range(0, target, _BLOCK):
        end = min(begin + _BLOCK, target)
        window = index[:, begin:end]
        first, last = int(window.min()), int(window.max()) + 1
        dense = np.zeros((end - begin, last - first))
        for tap in range(4):
            np.add.at(dense, (np.arange(end - begin), window[tap] - first), weight[tap, begin:end])
        blocks.append((begin, end, first, last, torch.from_numpy(dense.astype(np.float32))))
    return _Axis(needed, blocks)


def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The four source positions of each target position and their weights, both [4, target]."""
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    left = np.floor(position)
    x, a = position - left, -0.75
    weight = np.zeros((4, target))
    weight[0] = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a
    weight[1] = ((a + 2) * x - (a + 3)) * x * x + 1
    weight[2] = ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1
    weight[3] = 1 - weight[:3].sum(axis=0)
    index = left.astype(np.int64)[None] + np.arange(-1, 3)[:, None]
    return index.clip(0, source - 1), weight
