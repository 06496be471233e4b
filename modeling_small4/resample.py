"""Bicubic resampling of images to normalised float tensors, as mistral-common's OpenCV call computes it.

Cubic kernel with a = -0.75, half-pixel centres, no antialiasing, edges repeated, float32 and no clamping. Each axis is
a banded matrix, and blocks of its rows are dense enough for matrix products. Must not know: files, tokens, patches.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

_ROW_WINDOW, _COLUMN_WINDOW = 32, 64  # about how many source samples a block looks at
_SMALL, _LARGE = 20_000, 1_500_000  # pixels


class _Block(NamedTuple):
    """Targets [begin, end) are `weights` [end - begin, last - first] times the samples [first, last)."""

    begin: int
    end: int
    first: int
    last: int
    weights: np.ndarray


class _Axis(NamedTuple):
    needed: np.ndarray | None  # positions of the samples the blocks count; None: all samples
    blocks: list[_Block]


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
    # OpenCV takes another path for images narrower than its kernel, where positions are rounded to float32.
    single = min(image.width, image.height) < 4
    rows = _axis(image.height, height, single, _ROW_WINDOW)
    columns = _axis(image.width, width, single, _COLUMN_WINDOW)
    scale = (1 / (255 * np.array(std))).astype(np.float32)
    out = np.empty((3, height, width), np.float32)
    (_resize_at_once if image.width * image.height < _SMALL else _resize_by_channel)(image, rows, columns, scale, out)
    out -= (np.array(mean) / np.array(std)).astype(np.float32).reshape(3, 1, 1)
    return torch.from_numpy(out)


def _resize_at_once(image: Image.Image, rows: _Axis, columns: _Axis, scale: np.ndarray, out: np.ndarray) -> None:
    """All channels in each product, which saves calls where calls are what takes time."""
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    if rows.needed is not None:
        pixels = pixels[:, rows.needed]
    middle = np.empty((pixels.shape[0], out.shape[1], image.width), np.float32)
    for begin, end, first, last, weights in rows.blocks:
        np.matmul(weights, pixels[:, first:last], out=middle[:, begin:end])
    source = middle if columns.needed is None else middle[:, :, columns.needed]
    for begin, end, first, last, weights in columns.blocks:
        np.matmul(source[:, :, first:last], weights.T * scale[:, None, None], out=out[:, :, begin:end])


def _resize_by_channel(image: Image.Image, rows: _Axis, columns: _Axis, scale: np.ndarray, out: np.ndarray) -> None:
    """One channel after the other, which saves memory and its traffic."""
    middle = np.empty((out.shape[1], image.width), np.float32)
    planes = image.split()
    for channel in range(3):
        if channel < len(planes):
            _resize_rows(planes[channel], rows, middle)
        source = middle if columns.needed is None else middle[:, columns.needed]
        for begin, end, first, last, weights in columns.blocks:
            np.matmul(source[:, first:last], weights.T * scale[channel], out=out[channel, :, begin:end])


def _resize_rows(plane: Image.Image, rows: _Axis, out: np.ndarray) -> None:
    """One channel, uint8 -> float32 `out` [target height, width]."""
    pixels = np.frombuffer(bytearray(plane.tobytes()), np.uint8).reshape(plane.height, plane.width)
    if rows.needed is not None:
        pixels = pixels[rows.needed]
    if pixels.size < _LARGE:
        for begin, end, first, last, weights in rows.blocks:
            np.matmul(weights, pixels[first:last].astype(np.float32), out=out[begin:end])
        return
    source, target = torch.from_numpy(pixels), torch.from_numpy(out)  # torch is the faster one for wide blocks
    for begin, end, first, last, weights in rows.blocks:
        torch.mm(torch.from_numpy(weights), source[first:last].float(), out=target[begin:end])


@lru_cache(maxsize=256)
def _axis(source: int, target: int, single: bool, window: int) -> _Axis:
    """The weights that take `source` samples to `target`."""
    index, weight = _taps(source, target, single)
    needed = None
    if source > 8 * target:  # most samples are never looked at
        needed, index = np.unique(index, return_inverse=True)
        index = index.reshape(weight.shape)
        source = len(needed)
    size = max(window * target // source, 1)
    blocks = []
    for begin in range(0, target, size):
        end = min(begin + size, target)
        seen = index[:, begin:end]
        first, last = int(seen.min()), int(seen.max()) + 1
        dense = np.zeros((end - begin, last - first))
        for tap in range(4):
            np.add.at(dense, (np.arange(end - begin), seen[tap] - first), weight[tap, begin:end])
        blocks.append(_Block(begin, end, first, last, dense.astype(np.float32)))
    return _Axis(needed, blocks)


def _taps(source: int, target: int, single: bool) -> tuple[np.ndarray, np.ndarray]:
    """The four source positions of each target position and their weights, both [4, target]."""
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    if single:
        position = position.astype(np.float32).astype(np.float64)
    left = np.floor(position)
    x, a = position - left, -0.75
    weight = np.zeros((4, target))
    weight[0] = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a
    weight[1] = ((a + 2) * x - (a + 3)) * x * x + 1
    weight[2] = ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1
    weight[3] = 1 - weight[:3].sum(axis=0)
    index = left.astype(np.int64)[None] + np.arange(-1, 3)[:, None]
    return index.clip(0, source - 1), weight
