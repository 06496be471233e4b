"""Stands for utils/fetch_hub_objects_for_ci.py of transformers: every image of the Hub is one of our own."""

from pathlib import Path

from PIL import Image

FILE = Path(__file__).with_name("image.png")
Image.effect_noise((320, 240), 60).convert("RGB").save(FILE)


def url_to_local_path(url: str, return_url_if_not_found: bool = True) -> str:
    """A file for the address of an image; other addresses stay."""
    return str(FILE) if url.endswith((".png", ".jpg")) else url
