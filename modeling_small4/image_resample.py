"""Bicubic resampling of images to normalized float arrays, as mistral-common's OpenCV call computes it.

Cubic kernel with a = -0.75, half-pixel centers, no antialiasing, edges repeated, float32 and no clamping. An image
passes in strips that stay in the processor's cache: to RGB, then rows as sums of four rows each, then columns as
products with blocks of a banded matrix. Must not know: files, tokens, patches.
"""

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

_STRIP = 1_500_000  # about how many numbers wait for their columns to be resized
_PART = 500_000  # about how many source samples are looked at at once
_SMALL = 8_000  # pixels of images that are better resized at once
_MOST = 8  # samples for each target; of more, those that are never looked at are left out
# The cubic kernel's four weights as polynomials of the distance to the sample on the left, lowest power first.
_CUBIC = np.array([[0, -0.75, 1.5, -0.75], [1, 0, -2.25, 1.25], [0, 0.75, 1.5, -1.25], [0, 0, -0.75, 0.75]])
_memory = threading.local()


class _Rows(NamedTuple):
    """Each target row is the sum of a constant row and of four sample rows with their weights."""

    needed: np.ndarray | None  # positions of the rows that are samples; None: all of them
    numbers: np.ndarray  # [target, 5]: 0 for the constant row, then the numbers of the samples, counted from 1
    weight: torch.Tensor  # [target, 5]: 1, then the weights of the samples
    offsets: torch.Tensor  # [target]: 0, 5, 10, ...


class _Block(NamedTuple):
    """Targets [begin, end) are the samples [first, last) times `weights` [last - first, end - begin]."""

    begin: int
    end: int
    first: int
    last: int
    weights: np.ndarray


class _Blocks(NamedTuple):
    needed: np.ndarray | None
    blocks: list[_Block]


def resample(image: Image.Image, out: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> None:
    """Resizes an image to the size of `out`, normalized by `(value / 255 - mean) / std`.

    Args:
        image: decoded PIL image of any mode that Pillow can bring to RGB; what is transparent becomes white.
        out: float32 [3, height, width], filled in place.
        mean, std: one number for each of the three channels.
    """
    _, height, width = out.shape
    # OpenCV takes another path for images narrower than its kernel, where positions are rounded to float32.
    single = min(image.size) < 4
    small = image.width * image.height < _SMALL > height * width
    if small and image.width <= _MOST * width and image.height <= _MOST * height:
        _resample_small(image, single, *_constants(tuple(mean), tuple(std), image.width), out)
        return
    rows = _rows(image.height, height, single) if image.height != height else None
    columns = _blocks(image.width, width, single, 16) if image.width != width else None
    center, scale = _constants(tuple(mean), tuple(std), 1)
    source = _Source(image, rows and rows.needed, columns and columns.needed)
    gray = _is_gray(image)
    samples = source.width if gray else 3 * source.width
    added = np.zeros(samples, np.float32) if gray else np.tile(-center, source.width)
    part = max(_PART * height // (samples * image.height), 4)
    tall = max(_STRIP // (samples * part), 1) * part
    for begin in range(0, height, tall):
        strip = out[:, begin : begin + tall]
        planes = _scratch("planes", (1 if gray else 3, strip.shape[1], source.width)) if columns or gray else strip
        for start in range(0, planes.shape[1], part):
            stop = min(start + part, planes.shape[1])
            resized = _resize_rows(source, rows, begin + start, begin + stop, added)
            _separate(resized, scale, planes[:, start:stop])
        _finish(planes, columns, scale, center, strip)


@lru_cache(maxsize=64)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], width: int) -> tuple[np.ndarray, np.ndarray]:
    """What is taken from values of 0 to 255, and what they are then multiplied with, for `width` pixels in a row."""
    return np.tile(255 * np.array(mean, np.float32), width), np.tile(1 / (255 * np.array(std, np.float32)), width)


def _resample_small(image: Image.Image, single: bool, center: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    """The same in the fewest calls, which for a small image are what takes the time."""
    _, height, width = out.shape
    pixels = _pixels(image, 0, image.height)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    values = _scratch("seen", (image.height, len(center)))
    values[:] = pixels.reshape(values.shape)
    values -= center
    values *= scale
    if height != image.height:
        samples, values = values, _scratch("planes", (height, len(center)))
        for begin, end, first, last, weights in _blocks(image.height, height, single, 28).blocks:
            np.matmul(weights.T, samples[first:last], out=values[begin:end])
    planes = values.reshape(height, -1, 3).transpose(2, 0, 1)
    if width == image.width:
        out[:] = planes
        return
    separate = _scratch("separate", planes.shape)
    separate[:] = planes
    _resize_columns(separate, _blocks(image.width, width, single, 28), out)


class _Source(NamedTuple):
    """An image and which of its rows and columns are samples; None: all."""

    image: Image.Image
    rows: np.ndarray | None
    columns: np.ndarray | None

    @property
    def width(self) -> int:
        return self.image.width if self.columns is None else len(self.columns)

    def read(self, first: int, last: int) -> np.ndarray:
        """The rows of samples [first, last): uint8 [rows, width * channels], one channel for a gray image, else
        three.
        """
        rows = None if self.rows is None else self.rows[first:last]
        top, bottom = (first, last) if rows is None else (int(rows[0]), int(rows[-1]) + 1)
        pixels = _pixels(self.image, top, bottom)
        if rows is not None:
            pixels = pixels[rows - top]
        if self.columns is not None:
            pixels = pixels[:, self.columns]
        return pixels.reshape(last - first, -1)


def _pixels(image: Image.Image, top: int, bottom: int) -> np.ndarray:
    """Rows [top, bottom) as uint8 [rows, width, 3], or [rows, width, 1] of a gray image."""
    if image.mode == "RGB":  # what image.crop(...).tobytes() does, without two of its three copies
        encoder = Image._getencoder("RGB", "raw", ("RGB",))
        encoder.setimage(image.im, (0, top, image.width, bottom))
        data = encoder.encode((bottom - top) * image.width * 3)[2]
    else:
        part = image if bottom - top == image.height else image.crop((0, top, image.width, bottom))
        data = _flat(part).tobytes()
    return np.frombuffer(data, np.uint8).reshape(bottom - top, image.width, -1)


def _is_gray(image: Image.Image) -> bool:
    return image.mode == "LA" or (image.mode in ("1", "L", "I", "F", "I;16") and not image.has_transparency_data)


def _flat(image: Image.Image) -> Image.Image:
    """RGB with transparency composited on white, as mistral-common does it; gray stays one channel."""
    mode = "L" if _is_gray(image) else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    if image.mode not in ("LA", "RGBA"):
        image = image.convert("RGBA")
    white = Image.new(mode, image.size, "WHITE")
    white.paste(image.convert(mode), (0, 0), image.getchannel("A"))
    return white


def _resize_rows(source: _Source, rows: _Rows | None, begin: int, end: int, added: np.ndarray) -> np.ndarray:
    """Target rows [begin, end), float32 [rows, samples], `added` to each."""
    if rows is None:
        pixels = source.read(begin, end)
        return np.add(pixels, added, out=_scratch("seen", pixels.shape))
    numbers = rows.numbers[begin:end]
    first, last = int(numbers[0, 1]) - 1, int(numbers[-1, 4])
    seen = _scratch("seen", (last - first + 1, len(added)))
    seen[0] = added
    seen[1:] = source.read(first, last)
    if first:
        numbers = numbers - first
        numbers[:, 0] = 0
    return _sums(seen, numbers, rows.weight[begin:end], rows.offsets[: end - begin])


def _sums(seen: np.ndarray, numbers: np.ndarray, weight: torch.Tensor, offsets: torch.Tensor) -> np.ndarray:
    """For each row of `numbers`, the sum of those rows of `seen` with their weights."""
    index = torch.from_numpy(numbers).view(-1)
    return torch.embedding_bag(torch.from_numpy(seen), index, offsets, False, 0, False, weight.view(-1))[0].numpy()


def _separate(rows: np.ndarray, scale: np.ndarray, planes: np.ndarray) -> None:
    """[rows, width * channels] -> [channels, rows, width], scaled where there are three."""
    if len(planes) == 1:
        planes[0] = rows
        return
    pixels = rows.reshape(len(rows), -1, 3)
    for channel in range(3):
        np.multiply(pixels[:, :, channel], scale[channel], out=planes[channel])


def _finish(
    planes: np.ndarray, columns: _Blocks | None, scale: np.ndarray, center: np.ndarray, out: np.ndarray
) -> None:
    """Resizes columns into `out` [3, rows, width]; a single plane, neither centered nor scaled yet, serves all
    channels.
    """
    if columns is not None:
        resized = out if len(planes) == 3 else _scratch("gray", (1, *out.shape[1:]))
        _resize_columns(planes, columns, resized)
        planes = resized
    if len(planes) == 1:
        for channel in range(3):
            np.subtract(planes[0], center[channel], out=out[channel])
            out[channel] *= scale[channel]


def _resize_columns(planes: np.ndarray, columns: _Blocks, out: np.ndarray) -> None:
    for begin, end, first, last, weights in columns.blocks:
        np.matmul(planes[:, :, first:last], weights, out=out[:, :, begin:end])


def _scratch(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """This thread's float32 memory of that name, kept from call to call: to fill fresh memory takes twice as long."""
    size = math.prod(shape)
    kept = getattr(_memory, name, None)
    if kept is None or kept.size < size:
        kept = np.empty(size, np.float32)
        setattr(_memory, name, kept)
    return kept[:size].reshape(shape)


@lru_cache(maxsize=128)
def _rows(source: int, target: int, single: bool) -> _Rows:
    """What takes `source` rows to `target`."""
    needed, index, weight = _taps(source, target, single)
    numbers = np.concatenate([np.zeros((1, target), np.int64), index + 1]).T
    weight = np.concatenate([np.ones((1, target)), weight]).T.astype(np.float32, order="C")
    offsets = torch.arange(0, 5 * target, 5)
    return _Rows(needed, np.ascontiguousarray(numbers), torch.from_numpy(weight), offsets)


@lru_cache(maxsize=128)
def _blocks(source: int, target: int, single: bool, size: int) -> _Blocks:
    """What takes `source` samples to `target`, `size` targets at once."""
    needed, index, weight = _taps(source, target, single)
    begin = np.arange(0, target, size)
    end = np.minimum(begin + size, target)
    first, last = index[0, begin], index[3, end - 1] + 1
    stop = np.cumsum((last - first) * (end - begin))
    start = stop - (last - first) * (end - begin)
    # All blocks lie one after the other in `dense`: sample s of target t at s * (its block's targets) + t.
    targets = np.arange(target)
    block = targets // size
    at = start[block] + targets - begin[block]
    dense = np.zeros(stop[-1], np.float32)
    for tap in range(4):
        dense[at + (index[tap] - first[block]) * (end - begin)[block]] += weight[tap]
    spans = zip(*(numbers.tolist() for numbers in (begin, end, first, last, start, stop)), strict=True)
    return _Blocks(needed, [_Block(b, e, f, n, dense[i:j].reshape(n - f, e - b)) for b, e, f, n, i, j in spans])


def _taps(source: int, target: int, single: bool) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Which positions are samples (None: all), and the four samples of each target and their weights, both [4,
    target].
    """
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    if single:
        position = position.astype(np.float32).astype(np.float64)
    left = np.floor(position)
    x = position - left
    weight = _CUBIC @ np.stack([np.ones(target), x, x * x, x * x * x])
    index = (left.astype(np.int64) + np.array([[-1], [0], [1], [2]])).clip(0, source - 1)
    if source <= _MOST * target:
        return None, index, weight
    needed, numbers = np.unique(index, return_inverse=True)  # most positions are never looked at
    return needed, numbers.reshape(index.shape), weight
