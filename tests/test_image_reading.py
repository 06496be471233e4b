"""Images as a person sees them: each kind of file against the same picture as a plain 8-bit RGB, and the switch to
mistral-common's way.
"""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image, ImageCms, ImageOps

from modeling_small4 import ImageAccess, Small4ImageProcessor

SIZES = {"patch_size": 14, "spatial_merge_size": 2, "max_image_size": 112}
OURS = Small4ImageProcessor(**SIZES)
THEIRS = Small4ImageProcessor(**SIZES, as_mistral_common=True)
STEP = 1.1 / 255 / 0.26  # what one of 255 steps of a sample makes


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width: int = 60, height: int = 33) -> Image.Image:
    """Unlike in every corner."""
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    return Image.fromarray(values.astype(np.uint8))


def same(first: Any, second: Any, tolerance: float = 0.0) -> None:
    one, two = OURS(first), OURS(second)
    assert one["image_sizes"].tolist() == two["image_sizes"].tolist()
    assert (one["pixel_values"] - two["pixel_values"]).abs().max() <= tolerance


def by_mistral_common(image: Image.Image) -> np.ndarray:
    config = ImageConfig(image_patch_size=14, max_image_size=112, spatial_merge_size=2)
    return ImageEncoder(config, SpecialImageIDs(img=10, img_break=12, img_end=13))(ImageChunk(image=image)).image


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(kind: str, number: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    data = saved(picture(), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    plain = Image.fromarray(np.asarray(upright))
    same(data, plain)
    same(Image.open(io.BytesIO(data)), plain)
    height, width = (plain.height, plain.width)
    assert OURS(data)["image_sizes"][0].tolist() == [-(-height // 28) * 28, -(-width // 28) * 28]
    found = THEIRS(data)["pixel_values"][0].numpy()
    assert np.abs(found - by_mistral_common(Image.open(io.BytesIO(data)))).max() < 2e-3


def test_a_damaged_orientation_is_none() -> None:
    data = saved(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\xff\x01\x12")
    same(data, Image.fromarray(np.asarray(Image.open(io.BytesIO(data)))))


def gray() -> np.ndarray:
    return np.asarray(picture().convert("L")).astype(np.uint16)


DEEP: dict[str, Callable[[], Any]] = {
    "I;16 image": lambda: Image.fromarray(gray() * 257),
    "I;16 PNG": lambda: saved(Image.fromarray(gray() * 257)),
    "I;16 TIFF": lambda: saved(Image.fromarray(gray() * 257), "TIFF"),
    "I;16B TIFF": lambda: saved(Image.frombytes("I;16B", gray().shape[::-1], (gray() * 257).astype(">u2").tobytes()),
    "TIFF"),
    "I image": lambda: Image.fromarray((gray() * 257).astype(np.int32)),
    "I of 8 bits": lambda: Image.fromarray(gray().astype(np.int32)),
    "F in 0..1": lambda: Image.fromarray((gray() / 255).astype(np.float32)),
    "F TIFF": lambda: saved(Image.fromarray((gray() / 255).astype(np.float32)), "TIFF"),
    "F in 0..255": lambda: Image.fromarray(gray().astype(np.float32)),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits(name: str) -> None:
    same(DEEP[name](), Image.fromarray(gray().astype(np.uint8)), STEP)


@pytest.mark.parametrize("values", [[-0.5, 0.5], [0.0, 256.0], [0.0, float("nan")], [0.0, float("inf")]])
def test_floats_that_are_no_samples(values: list[float]) -> None:
    image = Image.fromarray(np.array([values * 8] * 16, dtype=np.float32))
    with pytest.raises(ValueError, match="must hold values from 0 to"):
        OURS(image)


def cut_out() -> tuple[Image.Image, Image.Image]:
    """An image with full transparency in one half, and what is seen of it on white."""
    image = picture().convert("RGBA")
    alpha = np.zeros((image.height, image.width), np.uint8)
    alpha[:, image.width // 2 :] = 255
    image.putalpha(Image.fromarray(alpha))
    seen = Image.new("RGB", image.size, "white")
    seen.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return image, seen


def test_transparency_is_white_in_every_form() -> None:
    image, seen = cut_out()
    for each in (image, saved(image), saved(image, "WEBP", lossless=True), image.convert("RGBa")):
        same(each, seen, STEP)
    gray_seen = seen.convert("L")
    same(image.convert("LA"), gray_seen, STEP)
    same(saved(image.convert("LA")), gray_seen, STEP)
    key = (255, 0, 255)  # a color that is transparent, in RGB, palette and gray
    flat = Image.new("RGB", image.size, key)
    flat.paste(image.convert("RGB"), mask=image.getchannel("A"))
    same(saved(flat, transparency=key), seen, STEP)
    flat.info["transparency"] = key
    same(flat, seen, STEP)
    two = Image.new("P", (40, 30), 0)
    two.putpalette([9, 99, 200, 250, 10, 20])
    two.paste(1, (20, 0, 40, 30))
    expected = Image.new("RGB", (40, 30), "white")
    expected.paste((250, 10, 20), (20, 0, 40, 30))
    same(saved(two, transparency=0), expected)
    same(saved(two, transparency=bytes([0, 255])), expected)
    same(saved(two, "GIF", transparency=0), expected)
    ramp = Image.fromarray(np.tile(np.array([[7, 200]], np.uint8), (30, 20)))
    lit = Image.fromarray(np.tile(np.array([[255, 200]], np.uint8), (30, 20)))
    same(saved(ramp, transparency=7), lit)


def png(depth: int, kind: int, rows: bytes, size: tuple[int, int], transparent: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    body = (
        chunk(b"IHDR", header) + chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_transparent_color_of_sixteen_bits() -> None:
    row = b"\x00" + struct.pack(">HH", 0x1234, 0x8080) * 14
    data = png(16, 0, row * 28, (28, 28), struct.pack(">H", 0x1234))
    expected = np.tile(np.array([[255, 0x80]], np.uint8), (28, 14))
    same(data, Image.fromarray(expected), STEP)
    row = b"\x00" + struct.pack(">6H", 0x1234, 0, 0xFFFF, 0x8080, 0x8080, 0x8080) * 14
    data = png(16, 2, row * 28, (28, 28), struct.pack(">HHH", 0x1234, 0, 0xFFFF))
    same(data, Image.fromarray(np.repeat(expected[:, :, None], 3, axis=2)), STEP)


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green primaries are exchanged, so that it cannot be overlooked."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "XXXX".encode("utf-16-be")).replace(b"sRGB", b"XXXX", 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_profiles_are_applied(kind: str) -> None:
    profile = swapped_profile()
    data = saved(picture(), kind, icc_profile=profile)
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    expected = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert np.abs(np.asarray(expected).astype(int) - np.asarray(plain)).max() > 50
    same(data, Image.fromarray(np.asarray(expected)))
    assert (
        np.abs(THEIRS(data)["pixel_values"][0].numpy() - by_mistral_common(Image.open(io.BytesIO(data)))).max() < 2e-3
    )
    same(
        saved(picture(), kind, icc_profile=b"no profile"), Image.open(io.BytesIO(saved(picture(), kind))).convert("RGB")
    )


def test_other_colors() -> None:
    for mode in ("CMYK", "YCbCr", "HSV"):
        image = picture().convert(mode)
        same(image, Image.fromarray(np.asarray(image.convert("RGB"))))
    data = saved(picture().convert("CMYK"), "JPEG", quality=95)
    same(data, Image.fromarray(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))))
    assert np.abs(OURS(data)["pixel_values"].numpy() - OURS(picture())["pixel_values"].numpy()).mean() < 0.3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    same(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options), frames[0], STEP)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_files_that_are_cut_off_are_refused_in_one_line(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    for part in (0.02, 0.3, 0.7, 0.9):
        with pytest.raises(ValueError, match=r"^[^\n]{10,300}$"):
            OURS(data[: int(len(data) * part)])


def test_bombs_are_refused_before_they_are_decoded() -> None:
    def bomb(width: int, height: int) -> bytes:
        return png(8, 2, b"\x00" * 1000, (width, height), b"\x00\x01\x00\x02\x00\x03")

    for size in ((60_000, 60_000), (20_000, 5_000), (2**31 - 1, 1)):
        with pytest.raises(ValueError, match="pixels"):
            OURS(bomb(*size))
    with pytest.raises(ValueError, match="pixels"):
        OURS.preprocess(saved(picture()), access=ImageAccess(max_pixels=100))


def test_settings_of_a_call() -> None:
    image = picture()
    plain = OURS(image)["pixel_values"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OURS.image_mean, OURS.image_std))
    unit = plain * std + mean
    torch.testing.assert_close(OURS(image, do_normalize=False)["pixel_values"], unit, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        OURS(image, do_normalize=False, do_rescale=False)["pixel_values"], unit * 255, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        OURS(image, do_normalize=False, rescale_factor=-1.0)["pixel_values"], -unit * 255, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(OURS(image, image_mean=0.0, image_std=1.0)["pixel_values"], unit, atol=1e-5, rtol=0)
    assert OURS(image, size={"longest_edge": 28})["image_sizes"].tolist() == [[28, 28]]
    assert OURS(image, max_image_size=28)["image_sizes"].tolist() == [[28, 28]]
    last = OURS(image, data_format="channels_last")["pixel_values"]
    assert torch.equal(last.permute(0, 3, 1, 2), plain)
    whole = picture(56, 28)
    exact = OURS(whole, do_resize=False, do_normalize=False)["pixel_values"][0]
    torch.testing.assert_close(
        exact.permute(1, 2, 0) * 255, torch.from_numpy(np.array(whole)).float(), atol=1e-3, rtol=0
    )
    with pytest.raises(ValueError, match="multiples of 28"):
        OURS(image, do_resize=False)
    first = np.random.default_rng(1).integers(0, 255, (3, 40, 3), dtype=np.uint8)
    assert OURS(first, input_data_format="channels_first")["image_sizes"].tolist() == [[56, 28]]
    again = Small4ImageProcessor.from_dict(THEIRS.to_dict())
    assert again.as_mistral_common
