"""The image processor: images of any source, size and mode to pixel values, with mistral-common's sizes and values.

PIL and torch only. Must not know: text, tokens' ids, the model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .image_resample import resample
from .image_sources import ImageAccess, decoded, load_image, open_image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_SETTINGS = ("patch_size", "spatial_merge_size", "max_image_size", "image_mean", "image_std")


class Small4ImageProcessor(BaseImageProcessor):
    """Resizes images to whole image tokens and normalises them.

    Args:
        patch_size: side of a patch of the vision tower, in pixels.
        spatial_merge_size: side of the square of patches that becomes one image token.
        max_image_size: the longer side of a larger image is brought down to this, in pixels.
        image_mean, image_std: per channel, of values in [0, 1].
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012

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
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, but is {value!r}.")
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.max_image_size = max_image_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self._access = ImageAccess()

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; settings of its Pixtral image processor, which a release in its layout carries, are read too."""
        return super().from_dict(_from_pixtral(image_processor_dict), **kwargs)

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
        """(rows, columns) of image tokens for an image of `width` x `height` pixels.

        As mistral-common: both sides are divided by the larger ratio to `max_image_size` and rounded half to even,
        then rounded up to whole tokens.
        """
        ratio = max(height / self.max_image_size, width / self.max_image_size)
        if ratio > 1:
            width, height = max(round(width / ratio), 1), max(round(height / ratio), 1)
        unit = self.patch_size * self.spatial_merge_size
        return (height - 1) // unit + 1, (width - 1) // unit + 1

    def process_image(self, image: Any, access: ImageAccess | None = None) -> torch.Tensor:  # type: ignore[override]
        """One image -> float32 [3, height, width], height and width multiples of `patch_size * spatial_merge_size`."""
        return torch.from_numpy(self._process([open_image(image, access or self._access)])[0][0])

    def preprocess(  # type: ignore[override]
        self, images: Any, return_tensors: str | None = "pt", access: ImageAccess | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Images, nested in any way, to one batch in reading order.

        Returns:
            `pixel_values` float32 [images, 3, height, width], padded with zeros on the right and below to the largest,
            and `image_sizes` int64 [images, 2], (height, width) of each in pixels.
        """
        opened = [open_image(image, access or self._access) for image in flatten(images)]
        if not opened:
            raise ValueError("There are no images to process.")
        pixels, sizes = self._process(opened)
        if return_tensors in ("pt", None):
            return BatchFeature({"pixel_values": torch.from_numpy(pixels), "image_sizes": torch.from_numpy(sizes)})
        return BatchFeature({"pixel_values": pixels, "image_sizes": sizes}, tensor_type=return_tensors)

    def _process(self, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Decodes one image after the other, each into its place in the batch."""
        unit = self.patch_size * self.spatial_merge_size
        sizes = []
        for image in images:
            rows, columns = self.token_grid(*image.size)
            sizes.append((rows * unit, columns * unit))
        padded = any(size != sizes[0] for size in sizes[1:])
        height, width = (max(sides) for sides in zip(*sizes, strict=True)) if padded else sizes[0]
        # Memory from numpy, which asks for huge pages: the first writing takes a tenth of the time.
        pixels = (np.zeros if padded else np.empty)((len(images), 3, height, width), np.float32)
        for index, (height, width) in enumerate(sizes):
            image = decoded(images[index], f"image {index + 1} of {len(images)}" if len(images) > 1 else "the image")
            resample(image, pixels[index, :, :height, :width], self.image_mean, self.image_std)
        return pixels, np.array(sizes, np.int64)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Images for one source or a nested list of them, under the same limits as everywhere."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(source) for source in image_url_or_urls]
        return load_image(image_url_or_urls, self.access)

    def to_dict(self) -> dict[str, Any]:
        """The settings to save, without what images may be read from."""
        return {key: value for key, value in super().to_dict().items() if not key.startswith("_")}


def flatten(images: Any) -> list[Any]:
    """Nested lists of images as one flat list; an array or tensor of four dimensions is a list of images."""
    if isinstance(images, (list, tuple)):
        return [leaf for item in images for leaf in flatten(item)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _from_pixtral(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings with our names: `patch_size` as one number, `size["longest_edge"]` as `max_image_size`."""
    out = dict(settings)
    patch, size = out.get("patch_size"), out.pop("size", None)
    if isinstance(patch, dict) and patch.get("height") == patch.get("width"):
        out["patch_size"] = patch.get("height")
    if isinstance(size, dict) and "longest_edge" in size:
        out.setdefault("max_image_size", size["longest_edge"])
    if str(out.get("image_processor_type", "")).startswith("Pixtral"):
        out = {key: out[key] for key in _SETTINGS if key in out}
    return out
