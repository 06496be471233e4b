"""What a call of the image processor asks for, by transformers' names: done, or refused by name.

Must not know: images, tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from transformers.image_utils import ChannelDimension
from transformers.processing_utils import ImagesKwargs

from .files_reading import shown

_BICUBIC = 3
# Arguments that other image processors use, with the values that say what this one does anyway.
_FIXED: dict[str, tuple[Any, ...]] = {
    "resample": (_BICUBIC, "bicubic"),
    "do_convert_rgb": (True,),
    "do_pad": (True,),
    "do_center_crop": (False,),
    "default_to_square": (True, False),  # about sizes given as one number, of which there are none
    "disable_grouping": (True, False),  # about speed
}
_REFUSED = ("crop_size", "pad_size", "image_seq_length", "patch_size", "spatial_merge_size")


class Small4ImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Arguments of the image processor beyond transformers' own."""

    max_image_size: int | None
    as_mistral_common: bool | None


@dataclass(frozen=True)
class ImageSettings:
    """Settings of one call. `mean` and `std` are of values in [0, 1]: `(value / 255 - mean) / std` is what comes
    out.
    """

    unit: int
    max_image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: bool
    channels_last: bool
    input_format: str | None
    as_mistral_common: bool
    device: Any
    return_tensors: str | None

    @classmethod
    def of(cls, processor: Any, given: Mapping[str, Any]) -> "ImageSettings":
        """Those of an image processor, with what a call gives in place of its own.

        Raises:
            ValueError: an argument that is not known, or a value that cannot be honored.
        """
        given = {name: value for name, value in given.items() if value is not None}
        _check(given)
        get = lambda name: given.get(name, getattr(processor, name))  # noqa: E731
        limit = given.get("max_image_size", _longest_edge(given.get("size"), processor.max_image_size))
        mean, std = _three("image_mean", get("image_mean")), _three("image_std", get("image_std"))
        if not get("do_normalize"):
            mean, std = (0.0,) * 3, (1.0,) * 3
        for name in ("do_resize", "do_rescale", "do_normalize", "as_mistral_common"):
            if get(name) not in (True, False):
                raise ValueError(f"{name} must be true or false, but is {shown(get(name))}.")
        if not _number(get("rescale_factor")):
            raise ValueError(f"rescale_factor must be a number, but is {shown(get('rescale_factor'))}.")
        scale = 255 * (get("rescale_factor") if get("do_rescale") else 1)
        if not scale or not all(std):
            raise ValueError("rescale_factor and image_std must not be 0.")
        return cls(
            unit=processor.unit,
            max_image_size=limit,
            mean=tuple(value / scale for value in mean),
            std=tuple(value / scale for value in std),
            resize=bool(get("do_resize")),
            channels_last=_channels_last("data_format", given.get("data_format")),
            input_format=given.get("input_data_format"),
            as_mistral_common=bool(get("as_mistral_common")),
            device=given.get("device"),
            return_tensors=given.get("return_tensors"),
        )

    def token_grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of image tokens for an image of `width` x `height` pixels.

        As mistral-common: both sides are divided by the larger ratio to `max_image_size` and rounded half to even,
        then rounded up to whole tokens.
        """
        if not self.resize:
            if width % self.unit or height % self.unit:
                raise ValueError(
                    f"do_resize=False, but the image has {width} x {height} pixels, and both sides must be multiples "
                    f"of {self.unit}."
                )
            return height // self.unit, width // self.unit
        ratio = max(height / self.max_image_size, width / self.max_image_size)
        if ratio > 1:
            width, height = max(round(width / ratio), 1), max(round(height / ratio), 1)
        return (height - 1) // self.unit + 1, (width - 1) // self.unit + 1


def _check(given: Mapping[str, Any]) -> None:
    known = Small4ImageProcessorKwargs.__annotations__
    for name, value in given.items():
        if name not in known or name in _REFUSED:
            raise ValueError(f"Small4ImageProcessor has no argument {name} in a call.")
        if name in _FIXED and getattr(value, "value", value) not in _FIXED[name]:
            allowed = " or ".join(repr(each) for each in _FIXED[name])
            raise ValueError(f"{name} is {shown(value)}, but Small4ImageProcessor knows only {allowed}.")
    limit = given.get("max_image_size", 1)
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"max_image_size must be a positive integer, but is {shown(limit)}.")


def _longest_edge(size: Any, default: int) -> int:
    if size is None:
        return default
    given = (
        {name: value for name, value in dict(size).items() if value is not None} if not isinstance(size, int) else {}
    )
    edge = given.pop("longest_edge", None)
    if given or not isinstance(edge, int) or edge < 1:
        raise ValueError(
            f"size is {shown(size)}, but it must be {{'longest_edge': pixels}}, the same as max_image_size."
        )
    return edge


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) < 1e9


def _three(name: str, value: Any) -> tuple[float, ...]:
    given = getattr(value, "tolist", lambda: value)()
    values = [given] * 3 if _number(given) else list(given) if isinstance(given, (list, tuple)) else []
    if len(values) != 3 or not all(_number(each) for each in values):
        has = f"has {len(values)}" if values and all(_number(each) for each in values) else f"is {shown(value)}"
        raise ValueError(f"{name} must be one number or three, one for each channel, but {has}.")
    return tuple(float(each) for each in values)


def _channels_last(name: str, value: object) -> bool:
    if value is None:
        return False
    try:
        return ChannelDimension(value) is ChannelDimension.LAST
    except ValueError:
        raise ValueError(f"{name} is {shown(value)}, but it must be 'channels_first' or 'channels_last'.") from None
