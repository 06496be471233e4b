"""Images as a person sees them: upright, 8 bits a channel, in the colors of their profile, on white.

Takes decoded PIL images of any mode and gives gray ("L") or "RGB". Must not know: files, sizes, pixel values.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever Pillow raises for a damaged block; viewers show such images as they are
        return 1
    return value if value in _TURNS else 1


def seen_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the upright image, in pixels."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def as_seen(image: Image.Image) -> Image.Image:
    """The decoded image upright, as "L" or "RGB", transparency composited on white.

    16-bit samples are scaled to 8 bits. Floats are taken as 0 to 1 if none is above 1, else as 0 to 255; 32-bit
    integers as 0 to 255 if none is above 255, else as 16 bits. An ICC profile is applied.

    Raises:
        ValueError: samples that are no such numbers; a mode without a way to RGB.
    """
    profile = image.info.get("icc_profile")
    turn = _TURNS.get(orientation(image))
    image, alpha = _eight_bits(image)
    if profile or image.mode not in ("L", "RGB"):
        image = _to_rgb(image, profile)
    if alpha is not None:
        white = Image.new(image.mode, image.size, "white")
        white.paste(image, mask=alpha)
        image = white
    if "transparency" in image.info:  # composited by now; Pillow keeps the note of it in some conversions
        image = image.copy()
        del image.info["transparency"]
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colors with 8 bits a channel, and how opaque each pixel is, if any is not."""
    transparent = image.info.get("transparency")
    if image.mode in _SIXTEEN_BITS or image.mode == "F":
        return _scaled(image, transparent)
    if transparent is not None and image.mode in ("L", "RGB", "1"):
        image = _with_alpha(image, transparent)
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or transparent is not None else "RGB")
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("RGBA", "LA"):
        return image, None
    return image.convert(image.mode[:-1]), image.getchannel("A")


def _with_alpha(image: Image.Image, transparent: object) -> Image.Image:
    """An image in which one color is transparent; Pillow keeps that of 16-bit images with 16 bits, but their pixels
    with 8.
    """
    if isinstance(transparent, tuple) and max(transparent) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image.convert("RGBA" if image.mode == "RGB" else "LA")


def _scaled(image: Image.Image, transparent: object) -> tuple[Image.Image, Image.Image | None]:
    """Gray of 16 bits or floats as gray of 8 bits."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        top = 1.0 if high <= 1 else 255.0
    else:
        top = 255.0 if image.mode == "I" and high <= 255 else 65535.0
    if not (low >= 0 and high <= top):
        raise ValueError(
            f"An image of mode {image.mode} must hold values from 0 to {top:g}, but this one has {low:g} to {high:g}; "
            "scale them."
        )
    gray = image.convert("L") if top == 255 else Image.fromarray(np.round(values * (255.0 / top)).astype(np.uint8))
    if not isinstance(transparent, int):
        return gray, None
    return gray, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    transform = _transform(profile, image.mode) if profile else None
    if transform is not None:
        return ImageCms.applyTransform(image, transform) or image
    if image.mode in ("L", "RGB"):
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"An image of mode {image.mode} cannot be converted to RGB: {error}.") from None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    """From a profile's colors to sRGB; None for sRGB itself, and for a profile that is damaged or of other images."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):
        return None
