"""Images from what users give: PIL images, arrays, tensors, bytes and data: URLs; files and the web only when allowed.

Checks the pixel count from the header before anything is decoded. Must not know: resizing, normalizing, patches.
"""

import base64
import binascii
import importlib
import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from transformers.image_utils import ChannelDimension

from .files_reading import LONGEST, one_line, reason_of, shown

# Raster formats whose decoders run nothing else (Pillow would hand EPS to Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")


@dataclass(frozen=True)
class ImageAccess:
    """What an image may be read from. The default allows nothing but data that the caller hands over.

    Attributes:
        paths: False; True for any file; or folders, below which files may be read.
        hosts: host names from which http(s) URLs may be fetched ("example.com", "*.example.com").
        private_addresses: allow hosts that resolve to loopback, private or link-local addresses.
        max_bytes: of an encoded image (file, download, data URL).
        max_pixels: width times height, read from the header.
        timeout: seconds for a whole download.
    """

    paths: bool | tuple[str | os.PathLike[str], ...] = False
    hosts: tuple[str, ...] = ()
    private_addresses: bool = False
    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 89_478_485
    timeout: float = 10.0


def load_image(source: object, access: ImageAccess | None = None) -> Image.Image:
    """A decoded PIL image from any allowed source; see `open_image`."""
    return decoded(open_image(source, access))


def open_image(source: object, access: ImageAccess | None = None, channels: str | None = None) -> Image.Image:
    """A PIL image from any allowed source, its size checked and, where it is encoded, not yet decoded.

    Args:
        source: PIL image; array or tensor [H, W], [H, W, C] or [C, H, W] of uint8, of floats in [0, 1] or of bools;
            encoded bytes; `data:` URL; where `access` allows it a path, `file://` or `http(s)://` URL.
        access: defaults to `ImageAccess()`.
        channels: of arrays and tensors, "channels_first" or "channels_last", where the shape does not tell.

    Raises:
        ValueError: a source that is not allowed, is too large, is no image or is broken.
    """
    access = access or ImageAccess()
    if not isinstance(access, ImageAccess):
        raise ValueError(f"image access must be an ImageAccess, but is {type(access).__name__}.")
    if isinstance(source, Image.Image):
        if isinstance(source, ImageFile.ImageFile):
            _check_pixels(source.size, access)
        if not source.width or not source.height:
            raise ValueError(f"the image is empty: {source.width} x {source.height} pixels.")
        return source
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _from_array(source, channels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), access, "the image bytes")
    if isinstance(source, Mapping) and source.keys() & {
        "bytes",
        "path",
    }:  # an image of the datasets library, not decoded
        data, path = source.get("bytes"), source.get("path")
        return _from_bytes(data, access, "the image bytes") if data is not None else _from_path(Path(str(path)), access)
    if isinstance(source, os.PathLike):
        return _from_path(Path(source), access)
    if isinstance(source, str):
        return _from_string(source, access)
    raise ValueError(
        "An image must be a PIL image, array, tensor, bytes, data: URL, path or http(s) URL, not "
        f"{type(source).__name__}."
    )


def decoded(image: Image.Image, what: str = "the image") -> Image.Image:
    """The image itself, its pixels read. Raises ValueError for data that is cut off or corrupt."""
    try:
        image.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{what} cannot be decoded: {error}.") from None
    return image


def _from_string(source: str, access: ImageAccess) -> Image.Image:
    scheme = source[:8].partition(":")[0].lower() if ":" in source[:8] else ""
    if scheme == "data":
        return _from_bytes(_data_url(source, access), access, "the data: URL")
    if scheme in ("http", "https"):
        if not access.hosts:
            raise ValueError(
                f"Fetching {shown(source)} is not allowed. Allow it with ImageAccess(hosts=({shown(_host(source))},)), "
                "or "
                "pass the image itself."
            )
        return _from_bytes(_download(source, access), access, one_line(source, 80))
    if scheme == "file":
        return _from_path(Path(unquote(urlsplit(source).path)), access)
    return _from_path(Path(source), access)


def _download(url: str, access: ImageAccess) -> bytes:
    """By the installed package: code that a checkpoint carries does not reach for the network."""
    try:
        fetch = importlib.import_module("modeling_small4.network.fetch").fetch
    except ImportError as error:
        raise ValueError(
            f"Fetching {shown(url)} needs the installed package modeling-small4 ({error}); or pass the image itself."
        ) from None
    return fetch(url, access)


def _data_url(url: str, access: ImageAccess) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header.endswith(";base64") or not payload:
        raise ValueError(f"{shown(url)} is no data: URL of the form data:<type>;base64,<payload>.")
    if len(payload) * 3 // 4 > access.max_bytes:
        raise ValueError(f"The data: URL holds more than the {access.max_bytes} bytes allowed for an image.")
    try:
        return base64.b64decode(payload)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"The payload of {shown(url)} is not base64: {error}.") from None


def _from_path(path: Path, access: ImageAccess) -> Image.Image:
    if not access.paths:
        raise ValueError(
            f"Reading the image from {shown(str(path), LONGEST)} is not allowed. Allow files with "
            "ImageAccess(paths=True) or paths=(folder,), or pass the opened image (PIL.Image.open)."
        )
    try:
        resolved = path.resolve(strict=True)
        size = resolved.stat().st_size
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"The image {shown(str(path), LONGEST)} cannot be read: {_without_path(error)}.") from None
    folders = () if isinstance(access.paths, bool) else access.paths
    if access.paths is not True and not any(resolved.is_relative_to(Path(folder).resolve()) for folder in folders):
        raise ValueError(f"{shown(str(path), LONGEST)} is not below any of the folders from which images may be read.")
    if not resolved.is_file():
        raise ValueError(f"{shown(str(path), LONGEST)} is not a file.")
    if size > access.max_bytes:
        raise ValueError(
            f"{shown(str(path), LONGEST)} is larger than the {access.max_bytes} bytes allowed for an image."
        )
    try:
        data = resolved.read_bytes()
    except OSError as error:
        raise ValueError(f"The image {shown(str(path), LONGEST)} cannot be read: {_without_path(error)}.") from None
    return _from_bytes(data, access, one_line(path, 200))


def _without_path(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or reason_of(error)


def _from_bytes(data: bytes, access: ImageAccess, what: str) -> Image.Image:
    if not data:
        raise ValueError(f"{what} is empty.")
    if len(data) > access.max_bytes:
        raise ValueError(f"{what} is larger than the {access.max_bytes} bytes allowed for an image.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError:
        raise ValueError(f"{what} has far more than the {access.max_pixels} pixels allowed.") from None
    except UnidentifiedImageError:
        raise ValueError(f"{what} is no image in any of the formats {', '.join(FORMATS)}.") from None
    except Exception as error:  # Pillow's plugins raise many kinds for broken headers
        raise ValueError(f"{what} has a broken header: {error}.") from None
    _check_pixels(image.size, access)
    return image


def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_pixels(size: tuple[int, int], access: ImageAccess) -> None:
    width, height = size
    if width * height > access.max_pixels:
        raise ValueError(
            f"The image has {width} x {height} pixels, but at most {access.max_pixels} are allowed; make it smaller "
            "or raise ImageAccess(max_pixels=...)."
        )


def _from_array(source: np.ndarray | torch.Tensor, channels: str | None) -> Image.Image:
    if isinstance(source, torch.Tensor):
        if source.is_meta:
            raise ValueError("An image tensor on the meta device holds no pixels.")
        source = (source.float() if source.is_floating_point() else source).detach().cpu().numpy()
    array: np.ndarray = source
    shape = array.shape
    first = shape[-1] not in (1, 3, 4) if channels is None else ChannelDimension(channels) is ChannelDimension.FIRST
    if array.ndim == 3 and first and shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in shape:
        raise ValueError(
            f"An image array must be [H, W], [H, W, C] or [C, H, W] with C of 1, 3 or 4, not {list(shape)}."
        )
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind not in "uif":
        raise ValueError(f"An image array must hold numbers or bools, not {array.dtype}.")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError("A float image array must hold values in [0, 1]; pass uint8 for values in [0, 255].")
        array = np.round(array * 255)
    elif array.min() < 0 or array.max() > 255:
        raise ValueError(f"An image array of {array.dtype} must hold values in [0, 255].")
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
