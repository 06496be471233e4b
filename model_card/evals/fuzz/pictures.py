"""Images in every format that Pillow writes, damaged byte by byte and field by field. What is right: the pixels that
Pillow itself decodes, and the size that the settings ask for.
"""

import io
import random
import struct
import zlib
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageFile
from transformers import BatchFeature

from modeling_small4 import ImageAccess, Small4ImageProcessor
from modeling_small4.image_sources import FORMATS, load_image

from .cases import Bench, Case

ACCESS = ImageAccess(max_pixels=10_000, max_bytes=200_000)
MODES = ("RGB", "L", "RGBA", "P", "1", "LA", "I;16", "I", "F", "CMYK")
_NUMBERS = (0, 1, 2, 3, 4, 8, 16, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@cache
def sound() -> list[tuple[str, bytes]]:
    """One image of each format and mode that Pillow can write, in words."""
    Image.init()
    out = []
    for kind in sorted(Image.SAVE):
        for mode in MODES:
            image = _image(mode)
            exif = Image.Exif()
            exif[0x0112] = 6
            for options in ({}, {"exif": exif}) if kind in ("JPEG", "PNG", "TIFF", "WEBP") else ({},):
                stream = io.BytesIO()
                try:
                    image.save(stream, format=kind, **options)
                except Exception:
                    continue  # a format without this mode, or whose library is missing
                out.append((f"{kind} {mode}{' turned' if options else ''}", stream.getvalue()))
    return out


def _image(mode: str) -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (21, 33, 4), dtype=np.uint8)
    if mode in ("I;16", "I"):
        return (
            Image.fromarray(values[..., 0].astype(np.uint16) * 257)
            if mode == "I;16"
            else Image.fromarray(values[..., 0].astype(np.int32) * 257)
        )
    if mode == "F":
        return Image.fromarray(values[..., 0].astype(np.float32) / 255)
    if mode in ("RGBA", "CMYK"):
        return Image.fromarray(values, mode)
    return Image.fromarray(values[..., :3]).convert(mode)


def picture(bench: Bench, draw: random.Random) -> Case:
    kind, data = draw.choice(sound())
    what = [kind]
    for _ in range(draw.choice((1, 1, 2, 4))):
        data, how = _png(data, draw) if data[:4] == b"\x89PNG" and draw.random() < 0.5 else _bytes(data, draw)
        what.append(how)
    processor = Small4ImageProcessor(14, 2, 56)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))

    def check(found: BatchFeature) -> str | None:
        pixels, ((height, width),) = found["pixel_values"], found["image_sizes"].tolist()
        if list(pixels.shape) != [1, 3, height, width] or height % 28 or width % 28 or max(height, width) > 56:
            return f"pixels of {list(pixels.shape)} for an image of {height} x {width}"
        values = pixels[0] * std + mean
        if not torch.isfinite(pixels).all() or values.min() < -1 or values.max() > 2:
            return "values that are no colours"
        return _unlike_pillow(data)

    def read() -> object:
        return processor.preprocess(data, access=ACCESS)

    return Case(", ".join(what), read, check, ("image",))


def _unlike_pillow(data: bytes) -> str | None:
    ours = load_image(data, ACCESS)
    if ours.width * ours.height > ACCESS.max_pixels:
        return f"{ours.width} x {ours.height} pixels, more than allowed"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    theirs = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    theirs.load()
    same = (ours.mode, ours.size) == (theirs.mode, theirs.size) and ours.tobytes() == theirs.tobytes()
    return None if same else "other pixels than Pillow's"


def _bytes(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    out = bytearray(data)
    way = draw.choice(("flipped", "number", "number", "cut", "longer", "removed", "repeated", "zeros", "nothing"))
    reach = draw.choice((min(64, len(out)), len(out)))
    place = draw.randrange(max(1, reach))
    if way == "flipped" and out:
        out[place % len(out)] ^= 1 << draw.randrange(8)
    elif way == "number":
        kind, number = draw.choice("BHI"), draw.choice(_NUMBERS)
        number &= (1 << 8 * struct.calcsize(kind)) - 1
        packed = struct.pack(draw.choice("<>") + kind, number)
        out[place : place + len(packed)] = packed
    elif way == "cut":
        out = out[:place]
    elif way == "longer":
        out += bytes(draw.randrange(256) for _ in range(draw.randrange(1, 40)))
    elif way in ("removed", "repeated", "zeros"):
        length = draw.randrange(1, 20)
        piece = {"removed": b"", "repeated": bytes(out[place : place + length]) * 2, "zeros": bytes(length)}[way]
        out[place : place + length] = piece
    return bytes(out), f"{way} at {place}"


def _png(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """A PNG whose chunks are changed and whose checksums are right."""
    chunks, place = [], 8
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return data, "nothing"
    index = draw.randrange(len(chunks))
    name, body = chunks[index]
    way = draw.choice(("field", "field", "dropped", "twice", "renamed", "exchanged", "emptied"))
    if way == "field":
        body, _ = _bytes(body, draw)
        chunks[index] = (name, body)
    elif way == "dropped":
        del chunks[index]
    elif way == "twice":
        chunks.insert(index, chunks[index])
    elif way == "renamed":
        chunks[index] = (draw.choice((b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"zTXt", b"gAMA")), body)
    elif way == "exchanged":
        other = draw.randrange(len(chunks))
        chunks[index], chunks[other] = chunks[other], chunks[index]
    else:
        chunks[index] = (name, b"")
    out = data[:8]
    for name, body in chunks:
        out += len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)
    return out, f"chunk {name.decode('latin-1')!r} {way}"
