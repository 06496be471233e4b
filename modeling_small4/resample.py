"""Bicubic resampling of images to normalised float arrays, as mistral-common's OpenCV call computes it.

Cubic kernel with a = -0.75, half-pixel centres, no antialiasing, edges repeated, float32 and no clamping. An image passes
in strips that stay in the processor's cache: to RGB, then rows as sums of four rows each, then columns as products with
blocks of a banded matrix. Must not know: files, tokens, patches.
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
_BLOCK = 16  # target columns that one matrix product gives
# The cubic kernel's four weights as polynomials of the distance to the sample on the left, lowest power first.
_CUBIC = np.array([[0, -0.75, 1.5, -0.75], [1, 0, -2.25, 1.25], [0, 0.75, 1.5, -1.25], [0, 0, -0.75, 0.75]])
_memory = threading.local()


class _Rows(NamedTuple):
    """Each target row is the sum of a constant row and of four sample rows with their weights."""

    needed: np.ndarray | None  # positions of the rows that are samples; None: all of them
    numbers: np.ndarray  # [target, 5]: 0 for the constant row, then the numbers of the samples
    weight: torch.Tensor  # [target, 5]: 1, then the weights of the samples


class _Block(NamedTuple):
    """Target columns [begin, end) are the sample columns [first, last) times `weights` [last - first, end - begin]."""

    begin: int
    end: int
    first: int
    last: int
    weights: np.ndarray


class _Columns(NamedTuple):
    needed: np.ndarray | None
    blocks: list[_Block]


def resample(image: Image.Image, out: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> None:
    """Resizes an image to the size of `out`, normalised by `(value / 255 - mean) / std`.

    Args:
        image: decoded PIL image of any mode that Pillow can bring to RGB; what is transparent becomes white.
        out: float32 [3, height, width], filled in place.
        mean, std: one number for each of the three channels.
    """
    constants = tuple(mean), tuple(std)
    if image.width * image.height < _SMALL > out.shape[1] * out.shape[2]:
        _resample_small(image, out, *_constants(*constants, image.width))
        return
    centre, scale = _constants(*constants, 1)
    _, height, width = out.shape
    single = min(image.size) < 4
    rows = _rows(image.height, height, single) if image.height != height else None
    columns = _columns(image.width, width, single) if image.width != width else None
    source = _Source(image, rows and rows.needed, columns and columns.needed)
    grey = _is_grey(image)
    samples = source.width if grey else 3 * source.width
    added = np.zeros(samples, np.float32) if grey else np.tile(-centre, source.width)
    part = max(_PART * height // (samples * image.height), 4)
    tall = max(_STRIP // (samples * part), 1) * part
    for begin in range(0, height, tall):
        strip = out[:, begin : begin + tall]
        planes = _scratch("planes", (1 if grey else 3, strip.shape[1], source.width)) if columns or grey else strip
        for start in range(0, planes.shape[1], part):
            stop = min(start + part, planes.shape[1])
            resized = _resize_rows(source, rows, begin + start, begin + stop, added)
            _separate(resized, scale, planes[:, start:stop])
        _finish(planes, columns, scale, centre, strip)


@lru_cache(maxsize=64)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], width: int) -> tuple[np.ndarray, np.ndarray]:
    """What is taken from values of 0 to 255, and what they are then multiplied with, for `width` pixels in a row."""
    return np.tile(255 * np.array(mean, np.float32), width), np.tile(1 / (255 * np.array(std, np.float32)), width)


def _resample_small(image: Image.Image, out: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> None:
    """All at once by whole matrices: more multiplications, but fewer calls, which take longer than those."""
    _, height, width = out.shape
    single = min(image.size) < 4
    pixels = _pixels(image, 0, image.height)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    values = pixels.reshape(image.height, -1).astype(np.float32)
    values -= centre
    values *= scale
    if height != image.height:
        values = _matrix(image.height, height, single) @ values
    planes = values.reshape(height, -1, 3).transpose(2, 0, 1)
    if width == image.width:
        out[:] = planes
    else:
        np.matmul(np.ascontiguousarray(planes), _matrix(image.width, width, single).T, out=out)


@lru_cache(maxsize=256)
def _matrix(source: int, target: int, single: bool) -> np.ndarray:
    """All weights of `source` samples for `target`, [target, source]."""
    _, index, weight = _taps(source, target, single, keep=True)
    matrix = np.zeros((target, source), np.float32)
    for tap in range(4):
        matrix[np.arange(target), index[tap]] += weight[tap]
    return matrix


class _Source(NamedTuple):
    """An image and which of its rows and columns are samples; None: all."""

    image: Image.Image
    rows: np.ndarray | None
    columns: np.ndarray | None

    @property
    def width(self) -> int:
        return self.image.width if self.columns is None else len(self.columns)

    def read(self, first: int, last: int) -> np.ndarray:
        """The rows of samples [first, last): uint8 [rows, width * channels], one channel for a grey image, else three."""
        rows = None if self.rows is None else self.rows[first:last]
        top, bottom = (first, last) if rows is None else (int(rows[0]), int(rows[-1]) + 1)
        pixels = _pixels(self.image, top, bottom)
        if rows is not None:
            pixels = pixels[rows - top]
        if self.columns is not None:
            pixels = pixels[:, self.columns]
        return pixels.reshape(last - first, -1)


def _pixels(image: Image.Image, top: int, bottom: int) -> np.ndarray:
    """Rows [top, bottom) as uint8 [rows, width, 3], or [rows, width, 1] of a grey image."""
    if image.mode == "RGB":  # what image.crop(...).tobytes() does, without two of its three copies
        encoder = Image._getencoder("RGB", "raw", ("RGB",))
        encoder.setimage(image.im, (0, top, image.width, bottom))
        data = encoder.encode((bottom - top) * image.width * 3)[2]
    else:
        part = image if bottom - top == image.height else image.crop((0, top, image.width, bottom))
        data = _flat(part).tobytes()
    return np.frombuffer(data, np.uint8).reshape(bottom - top, image.width, -1)


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L") and "transparency" not in image.info


def _flat(image: Image.Image) -> Image.Image:
    """RGB with transparency composited on white, as mistral-common does it; grey stays one channel."""
    if _is_grey(image):
        return image.convert("L")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "WHITE")
    white.paste(image, (0, 0), image)
    return white.convert("RGB")


def _resize_rows(source: _Source, rows: _Rows | None, begin: int, end: int, added: np.ndarray) -> np.ndarray:
    """Target rows [begin, end), float32 [rows, samples], `added` to each."""
    if rows is None:
        pixels = source.read(begin, end)
        return np.add(pixels, added, out=_scratch("seen", pixels.shape))
    index = rows.numbers[begin:end]
    first, last = int(index[0, 1]), int(index[-1, 4]) + 1
    seen = _scratch("seen", (last - first + 1, len(added)))
    seen[0] = added
    seen[1:] = source.read(first, last)
    index = index - (first - 1)
    index[:, 0] = 0
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(index), torch.from_numpy(seen), mode="sum", per_sample_weights=rows.weight[begin:end]
    ).numpy()


def _separate(rows: np.ndarray, scale: np.ndarray, planes: np.ndarray) -> None:
    """[rows, width * channels] -> [channels, rows, width], scaled where there are three."""
    if len(planes) == 1:
        planes[0] = rows
        return
    pixels = rows.reshape(len(rows), -1, 3)
    for channel in range(3):
        np.multiply(pixels[:, :, channel], scale[channel], out=planes[channel])


def _finish(
    planes: np.ndarray, columns: _Columns | None, scale: np.ndarray, centre: np.ndarray, out: np.ndarray
) -> None:
    """Resizes columns into `out` [3, rows, width]; a single plane, neither centred nor scaled yet, serves all channels."""
    if columns is not None:
        resized = out if len(planes) == 3 else _scratch("grey", (1, *out.shape[1:]))
        for begin, end, first, last, weights in columns.blocks:
            np.matmul(planes[:, :, first:last], weights, out=resized[:, :, begin:end])
        planes = resized
    if len(planes) == 1:
        for channel in range(3):
            np.subtract(planes[0], centre[channel], out=out[channel])
            out[channel] *= scale[channel]


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
    index = np.concatenate([np.zeros((1, target), np.int64), index]).T
    weight = np.concatenate([np.ones((1, target)), weight]).T
    return _Rows(needed, np.ascontiguousarray(index), torch.from_numpy(weight.astype(np.float32, order="C")))


@lru_cache(maxsize=128)
def _columns(source: int, target: int, single: bool) -> _Columns:
    """What takes `source` columns to `target`."""
    needed, index, weight = _taps(source, target, single)
    begin = np.arange(0, target, _BLOCK)
    end = np.minimum(begin + _BLOCK, target)
    first, last = index[0, begin], index[3, end - 1] + 1
    stop = np.cumsum((last - first) * (end - begin))
    start = stop - (last - first) * (end - begin)
    # All blocks lie one after the other in `dense`: sample s of target t at s * (its block's targets) + t.
    targets = np.arange(target)
    block = targets // _BLOCK
    at = start[block] + targets - begin[block]
    dense = np.zeros(stop[-1], np.float32)
    for tap in range(4):
        dense[at + (index[tap] - first[block]) * (end - begin)[block]] += weight[tap]
    spans = zip(*(numbers.tolist() for numbers in (begin, end, first, last, start, stop)), strict=True)
    return _Columns(needed, [_Block(b, e, f, n, dense[i:j].reshape(n - f, e - b)) for b, e, f, n, i, j in spans])


def _taps(
    source: int, target: int, single: bool, keep: bool = False
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Which positions are samples (None: all), and the four samples of each target and their weights, both [4, target]."""
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    if single:  # OpenCV takes another path for images narrower than its kernel, where positions are rounded
        position = position.astype(np.float32).astype(np.float64)
    left = np.floor(position)
    x = position - left
    weight = _CUBIC @ np.stack([np.ones(target), x, x * x, x * x * x])
    index = (left.astype(np.int64) + np.array([[-1], [0], [1], [2]])).clip(0, source - 1)
    if keep or source <= 8 * target:
        return None, index, weight
    needed, numbers = np.unique(index, return_inverse=True)  # most positions are never looked at
    return needed, numbers.reshape(index.shape), weight
