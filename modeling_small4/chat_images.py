"""Which image belongs to which place in a prompt. Must not know: pixels, ids, how a prompt is laid out."""

from typing import Any

from .chat_text import PromptText, SpecialTokens
from .reasoning import IMG


def place_images(
    texts: list[str], images: object, special: SpecialTokens, in_places: bool = False
) -> tuple[list[str], list[Any]]:
    """Prompt strings with a place (`[IMG]`) for each image, and the images in the order of their places.

    Args:
        texts: prompt strings. One without any special token has its images before it.
        images: one list for each text, or one list of all; a single image; None.
        in_places: every image must have a place, also in a text without special tokens.

    Raises:
        ValueError: the numbers differ.
    """
    places = [text.images if isinstance(text, PromptText) else [None] * text.count(IMG) for text in texts]
    plain = [not in_places and not row and special.is_plain(text) for row, text in zip(places, texts, strict=True)]
    groups = _groups(images, len(texts))
    if groups is None and all(plain):
        groups = _one_each(images, len(texts))
    if groups is None:
        return texts, fill(places, images)
    before = [len(group) if free else 0 for group, free in zip(groups, plain, strict=True)]
    texts = [IMG * count + text for count, text in zip(before, texts, strict=True)]
    places = [row or [None] * count for row, count in zip(places, before, strict=True)]
    return texts, fill(places, groups)


def fill(places: list[list[Any]], images: object) -> list[Any]:
    """An image for each place.

    Args:
        places: for each prompt its places: the image that the message named, or None.
        images: those given beside, as in `place_images`: as many as there are places, or as places without a name.

    Raises:
        ValueError: another number of images.
    """
    groups = _groups(images, len(places))
    if groups is None:
        return _fill([source for row in places for source in row], flatten(images), "")
    of = [f" in prompt {index + 1}" if len(places) > 1 else "" for index in range(len(places))]
    return [source for row in zip(places, groups, of, strict=True) for source in _fill(*row)]


def _fill(places: list[Any], images: list[Any], where: str) -> list[Any]:
    named = sum(source is not None for source in places)
    if len(images) == len(places):
        return images
    if len(images) != len(places) - named:
        raise ValueError(
            f"The number of {IMG} tokens in the prompts should be the same as the number of images, but there are "
            f"{len(places)} "
            f"places for images{where} and {len(images)} images for them"
            + (f" ({named} of the places have one named in the messages)." if named else ".")
        )
    left = iter(images)
    return [next(left) if source is None else source for source in places]


def flatten(images: Any) -> list[Any]:
    """Nested lists of images as one flat list; an array or tensor of four dimensions is a list of images, None is
    none.
    """
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [leaf for item in images for leaf in flatten(item)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _groups(images: Any, count: int) -> list[list[Any]] | None:
    """The images of each prompt; None if they are one list for all."""
    if images is None:
        return [[] for _ in range(count)]
    if count == 1:
        return [flatten(images)]
    nested = isinstance(images, (list, tuple)) and all(
        item is None or isinstance(item, (list, tuple)) for item in images
    )
    return [flatten(group) for group in images] if nested and len(images) == count else None


def _one_each(images: object, count: int) -> list[list[Any]]:
    """Images of texts that have no places for them."""
    flat = flatten(images)
    if len(flat) != count:
        raise ValueError(f"For {count} texts, images must be a list of {count} lists, one for each text.")
    return [[image] for image in flat]
