"""The image processor: images of any source, size and mode to pixel values, with mistral-common's sizes and values.

PIL and torch only. Must not know: text, tokens' ids, the model.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .chat_images import flatten
from .files_reading import check_json, folder_of, naming, shown
from .files_saving import NoLinksFollowed
from .image_reading import as_seen, seen_size
from .image_resample import resample
from .image_settings import ImageSettings, Small4ImageProcessorKwargs
from .image_sources import ImageAccess, decoded, load_image, open_image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_FILES = ("processor_config.json", "preprocessor_config.json")
_SETTINGS = ("patch_size", "spatial_merge_size", "max_image_size", "image_mean", "image_std")


class Small4ImageProcessor(NoLinksFollowed, BaseImageProcessor):
    """Resizes images to whole image tokens and normalizes them.

    Images are read as a person sees them: turned by their EXIF orientation, 16-bit and float samples scaled to 8 bits,
    ICC profiles applied, transparency composited on white, the first frame of an animation.

    Args:
        patch_size: side of a patch of the vision tower, in pixels.
        spatial_merge_size: side of the square of patches that becomes one image token.
        max_image_size: the longer side of a larger image is brought down to this, in pixels.
        image_mean, image_std: per channel, of values in [0, 1].
        as_mistral_common: read images as mistral-common does, pixel for pixel: neither orientation nor profile, samples
            of more than 8 bits cut off, no transparent color in RGB.
        kwargs: transformers' `do_resize`, `do_rescale`, `rescale_factor` and `do_normalize`.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012
    valid_kwargs = Small4ImageProcessorKwargs
    do_resize = do_rescale = do_normalize = True
    as_mistral_common = False

    def __init__(
        self,
        patch_size: int = 14,
        spatial_merge_size: int = 2,
        max_image_size: int = 1540,
        image_mean: Sequence[float] = MEAN,
        image_std: Sequence[float] = STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (
            ("patch_size", patch_size),
            ("spatial_merge_size", spatial_merge_size),
            ("max_image_size", max_image_size),
        ):
            if type(value) is not int or not 0 < value < 2**31:
                raise ValueError(f"{name} must be a positive integer, but is {shown(value)}.")
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.max_image_size = max_image_size
        self.image_mean = image_mean if isinstance(image_mean, (int, float)) else list(image_mean)
        self.image_std = image_std if isinstance(image_std, (int, float)) else list(image_std)
        ImageSettings.of(self, {})  # settings that cannot be used are refused now
        self._access = ImageAccess()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As transformers'. Raises ValueError or OSError that names the file for one that is damaged."""
        folder = folder_of(pretrained_model_name_or_path, kwargs.get("subfolder"))
        if folder is not None:
            check_json(folder, *_FILES)
        found = next((name for name in _FILES if folder is not None and os.path.lexists(folder / name)), _FILES[0])
        with naming(pretrained_model_name_or_path if folder is None else folder / found):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; settings of its Pixtral image processor, which a release in its layout carries, are read
        too.
        """
        return super().from_dict(_from_pixtral(image_processor_dict), **kwargs)

    @property
    def unit(self) -> int:
        """Side of an image token, in pixels."""
        return self.patch_size * self.spatial_merge_size

    @property
    def access(self) -> ImageAccess:
        """What images may be read from when a call does not say; not saved with the processor."""
        return self._access

    @access.setter
    def access(self, value: ImageAccess) -> None:
        if not isinstance(value, ImageAccess):
            raise ValueError(f"access must be an ImageAccess, but is {type(value).__name__}.")
        self._access = value

    def token_grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of image tokens for an upright image of `width` x `height` pixels."""
        return ImageSettings.of(self, {}).token_grid(width, height)

    def process_image(self, image: object, access: ImageAccess | None = None) -> torch.Tensor:
        """One image -> float32 [3, height, width], height and width multiples of `patch_size * spatial_merge_size`."""
        return torch.from_numpy(_process([open_image(image, access or self._access)], ImageSettings.of(self, {}))[0][0])

    def preprocess(
        self, images: object, return_tensors: str | None = "pt", access: ImageAccess | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Images, nested in any way, to one batch in reading order.

        Args:
            kwargs: transformers' arguments `size={"longest_edge": pixels}` (or `max_image_size`), `do_resize`,
                `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`, `image_std`, `data_format`,
                `input_data_format`, `device`, and `as_mistral_common`. Others are refused.

        Returns:
            `pixel_values` float32 [images, 3, height, width], padded with zeros on the right and below to the largest,
            and `image_sizes` int64 [images, 2], (height, width) of each in pixels.
        """
        settings = ImageSettings.of(self, kwargs | {"return_tensors": return_tensors})
        opened = [open_image(image, access or self._access, settings.input_format) for image in flatten(images)]
        if not opened:
            raise ValueError("There are no images to process.")
        pixels, sizes = _process(opened, settings)
        if settings.channels_last:
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        if return_tensors in ("pt", None):
            values = torch.from_numpy(pixels).to(settings.device or "cpu")
            return BatchFeature({"pixel_values": values, "image_sizes": torch.from_numpy(sizes)})
        return BatchFeature({"pixel_values": pixels, "image_sizes": sizes}, tensor_type=return_tensors)

    def fetch_images(self, image_url_or_urls: object) -> Any:
        """Images for one source or a nested list of them, under the same limits as everywhere."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(source) for source in image_url_or_urls]
        return load_image(image_url_or_urls, self.access)

    def to_dict(self) -> dict[str, Any]:
        """The settings to save, without what images may be read from."""
        return {key: value for key, value in super().to_dict().items() if not key.startswith("_")}


def _process(images: list[Image.Image], settings: ImageSettings) -> tuple[np.ndarray, np.ndarray]:
    """Decodes one image after the other, each into its place in the batch."""
    names = [f"image {index + 1} of {len(images)}" if len(images) > 1 else "the image" for index in range(len(images))]
    sizes = []
    for image, name in zip(images, names, strict=True):
        if not settings.as_mistral_common and image.format in ("PNG", "TIFF"):
            decoded(
                image, name
            )  # a PNG may hold its orientation behind its pixels; Pillow turns a TIFF when it decodes it
        rows, columns = settings.token_grid(*(image.size if settings.as_mistral_common else seen_size(image)))
        sizes.append((rows * settings.unit, columns * settings.unit))
    padded = any(size != sizes[0] for size in sizes[1:])
    height, width = (max(sides) for sides in zip(*sizes, strict=True)) if padded else sizes[0]
    # Memory from numpy, which asks for huge pages: the first writing takes a tenth of the time.
    pixels = (np.zeros if padded else np.empty)((len(images), 3, height, width), np.float32)
    for index, (height, width) in enumerate(sizes):
        image = decoded(images[index], names[index])
        try:
            image = image if settings.as_mistral_common else as_seen(image)
            resample(image, pixels[index, :, :height, :width], settings.mean, settings.std)
        except ValueError as error:  # also Pillow's, for colors that an image does not have
            raise ValueError(f"{names[index]} cannot be read: {error}") from error
    return pixels, np.array(sizes, np.int64)


def _from_pixtral(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings with our names: `patch_size` as one number, `size["longest_edge"]` as `max_image_size`."""
    if not isinstance(settings, dict):
        raise ValueError(f"the settings of the image processor must be an object, but are {shown(settings)}.")
    out = dict(settings)
    patch, size = out.get("patch_size"), out.pop("size", None)
    if isinstance(patch, dict) and patch.get("height") == patch.get("width"):
        out["patch_size"] = patch.get("height")
    if isinstance(size, dict) and "longest_edge" in size:
        out.setdefault("max_image_size", size["longest_edge"])
    if str(out.get("image_processor_type", "")).startswith("Pixtral"):
        out = {key: out[key] for key in _SETTINGS if key in out}
    return out
