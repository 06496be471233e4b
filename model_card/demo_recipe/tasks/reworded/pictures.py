"""Pictures as a camera takes them: turned a little, in low light, slightly out of focus.

What is asked and seen stays as in `tasks.pictures`. Draws with PIL only; knows nothing of tokens or models.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image, ImageEnhance, ImageFilter

from model_card.demo_recipe.tasks import pictures
from model_card.demo_recipe.tasks.item import Item

TURN = 15.0  # degrees, either way
DARKEST = 0.4  # of the light in which the picture was drawn


def draw(rng: random.Random, easy: bool = False, unseen: bool = False) -> Item:
    """A question about photographed pictures; with `unseen`, each is turned and darkened as far as training goes."""
    item, shots = pictures.draw(rng, easy), [_shot(rng, unseen) for _ in range(2)]
    drawn = item.images
    assert drawn is not None
    return replace(item, images=lambda: [photograph(image, *shot) for image, shot in zip(drawn(), shots, strict=False)])


def photograph(image: Image.Image, turn: float, light: float, blur: float) -> Image.Image:
    """`image` turned by `turn` degrees within its canvas, times `light`, blurred by `blur` pixels."""
    background = image.getpixel((0, 0))
    assert isinstance(background, Sequence)
    turned = image.rotate(turn, Image.Resampling.BICUBIC, fillcolor=tuple(background))
    return ImageEnhance.Brightness(turned).enhance(light).filter(ImageFilter.GaussianBlur(blur))


def _shot(rng: random.Random, unseen: bool) -> tuple[float, float, float]:
    if unseen:
        return rng.choice((-TURN, TURN)), DARKEST, 0.5
    turn = rng.uniform(-TURN, TURN) if rng.random() < 0.7 else 0.0
    light = rng.uniform(DARKEST, 1.0) if rng.random() < 0.7 else 1.0
    return turn, light, rng.choice((0.0, 0.5, 1.0))
