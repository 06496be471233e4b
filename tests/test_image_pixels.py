"""Pixels, sizes and token grids against mistral-common (which resizes with OpenCV) over sizes and modes."""

import random

import numpy as np
import pytest
import torch
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image

from modeling_small4.image_processing_small4 import Small4ImageProcessor
from tests import naive_pixels

MODES = [
    "RGB",
    "RGB",
    "RGBA",
    "L",
    "LA",
    "P",
    "PA",
    "1",
    "I;16",
    "I",
    "F",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "RGBX",
    "La",
    "RGBa",
]


def random_image(rng: random.Random, mode: str, width: int, height: int) -> Image.Image:
    values = np.random.default_rng(rng.getrandbits(32))
    if mode in ("I;16", "I"):
        return Image.fromarray(
            values.integers(0, 65536, (height, width)).astype(np.uint16 if mode == "I;16" else np.int32)
        )
    if mode == "F":
        return Image.fromarray(values.random((height, width), dtype=np.float32) * 255)
    image = Image.fromarray(values.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode == "P":
        image = image.convert("RGB").convert("P")
        if rng.random() < 0.5:
            image.info["transparency"] = rng.choice([0, 3, bytes(range(256))])
        return image
    if mode in ("L", "1", "RGB") and rng.random() < 0.2:
        image = image.convert(mode)
        image.info["transparency"] = (1, 2, 3) if mode == "RGB" else 7
        return image
    if mode == "RGBA":
        return image
    through = {"PA": "P", "HSV": "RGB", "LAB": "RGB", "YCbCr": "RGB", "CMYK": "RGB", "La": "LA", "RGBX": "RGB"}.get(
        mode
    )
    if mode == "LAB":
        return Image.frombytes(
            "LAB", (width, height), values.integers(0, 256, width * height * 3, dtype=np.uint8).tobytes()
        )
    return (image.convert(through) if through else image).convert(mode)


def random_size(rng: random.Random, limit: int) -> tuple[int, int]:
    kind = rng.random()
    if kind < 0.1:
        return (1, rng.randint(1, 3 * limit)) if rng.random() < 0.5 else (rng.randint(1, 3 * limit), 1)
    if kind < 0.2:
        return rng.randint(2 * limit, 6 * limit), rng.randint(1, 200)
    if kind < 0.3:
        unit = rng.choice([14, 28, 56])
        return unit * rng.randint(1, 9), unit * rng.randint(1, 9)
    return rng.randint(1, 2 * limit), rng.randint(1, 2 * limit)


def authority(patch: int, merge: int, limit: int) -> ImageEncoder:
    config = ImageConfig(image_patch_size=patch, max_image_size=limit, spatial_merge_size=merge)
    return ImageEncoder(config, SpecialImageIDs(img=10, img_break=12, img_end=13))


def agree(image: Image.Image) -> bool:
    """Whether mistral-common reads the image as a person sees it."""
    deep = image.mode in ("I;16", "I") and np.asarray(image).max() > 255
    return not deep and not (image.mode == "RGB" and image.has_transparency_data)


@pytest.mark.parametrize("seed", range(10))
def test_sizes_and_modes_equal_mistral_common(seed: int) -> None:
    pytest.importorskip("cv2")
    rng = random.Random(seed)
    for _ in range(110):
        patch, merge, limit = rng.choice([(14, 2, 224), (14, 2, 112), (16, 1, 160), (7, 3, 200)])
        width, height = random_size(rng, limit)
        image = random_image(rng, rng.choice(MODES), width, height)
        sizes = {"patch_size": patch, "spatial_merge_size": merge, "max_image_size": limit}
        same = agree(image)
        ours = Small4ImageProcessor(**sizes) if same else Small4ImageProcessor(**sizes, as_mistral_common=True)
        try:
            expected = authority(patch, merge, limit)(ImageChunk(image=image))
        except ValueError:  # modes that Pillow cannot bring to RGB
            with pytest.raises(ValueError, match=r"."):
                ours(image)
            continue
        got = ours(image)
        assert got["image_sizes"].tolist() == [list(expected.image.shape[1:])]
        assert got["pixel_values"].dtype == torch.float32
        difference = np.abs(got["pixel_values"][0].numpy() - expected.image).max()
        assert difference < 2e-3, (image, difference)
        rows, columns = ours.token_grid(width, height)
        assert expected.tokens.count(10) == rows * columns


@pytest.mark.parametrize(
    ("width", "height"),
    [(1540, 1540), (1541, 1), (4000, 3000), (1, 20000), (20000, 5), (20000, 1), (12000, 90), (3081, 2311)],
)
def test_the_release_size_equals_mistral_common(width: int, height: int) -> None:
    pytest.importorskip("cv2")
    image = random_image(random.Random(width), "RGB", width, height)
    expected = authority(14, 2, 1540)(ImageChunk(image=image)).image
    got = Small4ImageProcessor()(image)
    assert got["image_sizes"].tolist() == [list(expected.shape[1:])]
    assert np.abs(got["pixel_values"][0].numpy() - expected).max() < 2e-3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_narrow_images_of_other_modes_at_the_release_size(mode: str) -> None:
    pytest.importorskip("cv2")
    rng = random.Random(mode)
    for size in ((14_000, 2), (3, 13_000), (13_000, 40), (40, 13_000), (1700, 900)):
        image = random_image(rng, mode, *size)
        expected = authority(14, 2, 1540)(ImageChunk(image=image)).image
        got = Small4ImageProcessor(as_mistral_common=not agree(image))(image)["pixel_values"][0].numpy()
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < 2e-3


def test_half_pixels_round_to_even() -> None:
    ours = Small4ImageProcessor(patch_size=1, spatial_merge_size=1, max_image_size=4)
    assert ours.token_grid(8, 5) == (2, 4)  # 2.5 rounds to 2
    assert ours.token_grid(8, 7) == (4, 4)  # 3.5 rounds to 4
    assert ours.token_grid(4000, 1) == (1, 4)


@pytest.mark.parametrize("seed", range(3))
def test_resampling_equals_the_naive_loop(seed: int) -> None:
    rng = random.Random(seed)
    image = random_image(rng, "RGB", rng.randint(1, 40), rng.randint(1, 40))
    ours = Small4ImageProcessor(patch_size=3, spatial_merge_size=2, max_image_size=30)
    got = ours(image)
    height, width = got["image_sizes"][0].tolist()
    expected = naive_pixels.bicubic(np.asarray(image), height, width)
    expected = (expected / 255 - np.array(ours.image_mean)) / np.array(ours.image_std)
    np.testing.assert_allclose(got["pixel_values"][0].permute(1, 2, 0).numpy(), expected, atol=1e-4)


def test_a_batch_is_each_image_padded_with_zeros() -> None:
    rng = random.Random(5)
    ours = Small4ImageProcessor(max_image_size=140)
    images = [random_image(rng, "RGB", *random_size(rng, 140)) for _ in range(5)]
    batch = ours([images[:2], images[2:]])
    for index, image in enumerate(images):
        alone = ours(image)
        height, width = batch["image_sizes"][index].tolist()
        assert [height, width] == alone["image_sizes"][0].tolist()
        pixels = batch["pixel_values"][index]
        assert torch.equal(pixels[:, :height, :width], alone["pixel_values"][0])
        assert not pixels[:, height:].any()
        assert not pixels[:, :, width:].any()


def test_settings_that_cannot_work_are_refused() -> None:
    for settings in ({"patch_size": 0}, {"spatial_merge_size": -1}, {"max_image_size": 1.5}):
        with pytest.raises(ValueError, match="positive integer"):
            Small4ImageProcessor(**settings)
