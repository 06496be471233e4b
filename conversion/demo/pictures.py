"""Pictures for the demo checkpoint: one filled shape of one colour on a background, and what people ask about it.

Draws with PIL only; knows nothing of pixels' way into the model. A `Scene` fixes a picture completely, so that a split by
its hash keeps training and held-out pictures apart.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
SHAPES = ("circle", "square", "triangle", "star")
# Each name covers a small family of colours; a picture draws one of them and moves it a little.
COLOURS: dict[str, tuple[Colour, ...]] = {
    "red": ((255, 0, 0), (230, 20, 30), (210, 0, 0)),
    "green": ((0, 128, 0), (0, 255, 0), (40, 170, 60)),
    "blue": ((0, 0, 255), (30, 60, 220), (30, 100, 240)),
    "yellow": ((255, 255, 0), (255, 225, 30), (240, 220, 0)),
    "orange": ((255, 165, 0), (255, 140, 0), (250, 120, 10)),
    "purple": ((128, 0, 128), (130, 40, 200), (100, 0, 140)),
    "pink": ((255, 192, 203), (255, 105, 180), (255, 150, 190)),
    "brown": ((139, 69, 19), (165, 42, 42), (120, 70, 30)),
    "black": ((0, 0, 0), (15, 15, 15)),
    "white": ((255, 255, 255), (245, 245, 245)),
}
PLAIN_BACKGROUNDS: tuple[Colour, ...] = (
    (255, 255, 255),
    (255, 255, 255),
    (255, 255, 255),
    (0, 0, 0),
    (128, 128, 128),
    (210, 210, 210),
)
BACKGROUNDS: tuple[Colour, ...] = (
    (255, 255, 255), (255, 255, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 200, 200), (235, 235, 235),
    (240, 240, 220), (220, 235, 250), (60, 60, 60), (30, 30, 50), (190, 220, 190), (173, 216, 230), (255, 250, 205),
)  # fmt: skip
ASK_BOTH = (
    "What is in this picture?", "What is in this image?", "What is in the picture?", "What's in this picture?", "What do you see?",
    "What can you see in the image?", "Describe the image.", "Describe this picture.", "Describe the picture in a few words.",
    "What does this image show?", "What does the picture show?", "What is this?", "What is shown here?", "Tell me what you see.",
    "Which shape is it, and which colour?", "What shape and colour is this?", "What colour and shape is it?", "What is drawn here?",
    "Name the shape and its colour.", "What is the colour and shape in this picture?", "What object is in the picture?", "Look at this picture. What is it?",
)  # fmt: skip
ASK_COLOUR = (
    "Which colour is the shape?", "What colour is the shape?", "What colour is it?", "What is the colour of the shape?",
    "What color is the shape?", "Which color is it?", "Name the colour.", "Tell me the colour of this shape.", "What color is this?",
)  # fmt: skip
ASK_SHAPE = (
    "What shape is this?", "Which shape is this?", "What shape is it?", "What is the shape?", "Name the shape.",
    "Which shape is in the picture?", "What shape do you see?", "What shape is in the image?", "Tell me the shape.",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A picture: canvas in pixels, the shape's centre, radius, turn and (of a triangle) lean in degrees, colours, and how it is drawn."""

    width: int
    height: int
    shape: str
    colour: str
    paint: Colour
    background: Colour
    centre: tuple[float, float]
    radius: float
    turn: float
    lean: float
    outline: Colour | None
    smooth: bool


def draw_scene(rng: random.Random) -> Scene:
    """A random scene whose shape lies inside the canvas and stands out from the background; half of them are plain.

    In a plain one the shape is upright and large, near the middle, on white, black or grey: where learning starts.
    """
    plain = rng.random() < 0.5
    width, height = _canvas(rng)
    shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    paint = _near(rng.choice(COLOURS[colour]), 12, rng)
    background = _background(paint, plain, rng)
    side = min(width, height)
    radius = rng.uniform(0.3, 0.49) * side if plain or rng.random() < 0.5 else rng.uniform(0.2, 0.35) * side
    centre = (rng.uniform(radius, width - radius), rng.uniform(radius, height - radius))
    if plain:
        centre = (0.2 * centre[0] + 0.4 * width, 0.2 * centre[1] + 0.4 * height)
    turn = 0.0 if plain or rng.random() < 0.3 else rng.uniform(-25, 25)
    lean = rng.uniform(-15, 12) if shape == "triangle" else 0.0
    outline = rng.choice(((0, 0, 0), (90, 90, 90))) if not plain and rng.random() < 0.15 else None
    smooth = rng.random() < 0.5
    return Scene(width, height, shape, colour, paint, background, centre, radius, turn, lean, outline, smooth)


def render(scene: Scene) -> Image.Image:
    """The RGB picture; a smooth one is drawn four times larger and shrunk."""
    scale = 4 if scene.smooth else 1
    image = Image.new("RGB", (scene.width * scale, scene.height * scale), scene.background)
    pen = ImageDraw.Draw(image)
    x, y, radius = (value * scale for value in (*scene.centre, scene.radius))
    width = max(1, round(radius / 12)) if scene.outline else 0
    if scene.shape == "circle":
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=scene.paint, outline=scene.outline, width=width
        )
    else:
        corners = [(x + radius * dx, y + radius * dy) for dx, dy in _corners(scene)]
        pen.polygon(corners, fill=scene.paint, outline=scene.outline, width=width)
    return image.resize((scene.width, scene.height), Image.Resampling.BOX) if scene.smooth else image


def ask(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """(kind, question, answer): about both, or about the colour or the shape alone."""
    chance = rng.random()
    if chance < 0.2:
        kind, question, answer = "colour", rng.choice(ASK_COLOUR), scene.colour
    elif chance < 0.4:
        kind, question, answer = "shape", rng.choice(ASK_SHAPE), f"a {scene.shape}"
    else:
        article = "an" if scene.colour[0] in "aeiou" else "a"
        kind, question, answer = "colour and shape", rng.choice(ASK_BOTH), f"{article} {scene.colour} {scene.shape}"
    return kind, (question.lower() if rng.random() < 0.15 else question), answer


def think(scene: Scene) -> str:
    """What a look at the picture says first."""
    return f"colour: {scene.colour}\nshape: {scene.shape}"


def _canvas(rng: random.Random) -> tuple[int, int]:
    if rng.random() < 0.4:
        side = rng.choice((48, 56, 64, 64, 80, 96, 100, 112, 128, 160, 200, 224, 256))
        return side, side
    width = rng.randint(48, 420)
    return width, round(width * rng.uniform(0.5, 1.6))


def _background(paint: Colour, plain: bool, rng: random.Random) -> Colour:
    """White, black or grey in a plain scene, else pale, dark or any colour; far enough from the paint to be seen."""
    while True:
        if plain:
            colour = rng.choice(PLAIN_BACKGROUNDS)
        elif rng.random() < 0.6:
            colour = _near(rng.choice(BACKGROUNDS), rng.choice((0, 0, 12)), rng)
        else:
            colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        if math.dist(colour, paint) > 70:
            return colour


def _near(colour: Colour, spread: int, rng: random.Random) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in colour)
    return red, green, blue


def _corners(scene: Scene) -> list[tuple[float, float]]:
    """Corners on the unit circle around the centre, upright at turn 0; y grows downwards."""
    if scene.shape == "square":
        angles, radii = [45.0, 135.0, 225.0, 315.0], [1.0] * 4
    elif scene.shape == "triangle":
        angles, radii = [-90.0, 30.0 + scene.lean, 150.0 - scene.lean], [1.0] * 3
    else:
        angles, radii = [-90.0 + 36 * corner for corner in range(10)], [1.0, 0.42] * 5
    turned = [math.radians(angle + scene.turn) for angle in angles]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle, radius in zip(turned, radii, strict=True)]
