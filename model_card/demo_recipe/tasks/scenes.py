"""Scenes for the demo checkpoint's pictures: filled shapes, several equal ones, or a drawn digit, on a plain
background.

Draws with PIL only; knows nothing of questions or of pixels' way into the model. A `Scene` fixes a picture completely,
so that a split by its hash keeps training and held-out pictures apart.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
SHAPES = ("circle", "square", "triangle", "star")
# Each name covers a small family of colours; a picture draws one of them and moves it a little.
COLOURS: dict[str, tuple[Colour, ...]] = {
    "red": ((255, 0, 0), (230, 20, 30), (210, 0, 0)),
    "green": ((0, 128, 0), (0, 255, 0), (40, 170, 60)),
    "blue": ((0, 0, 255), (30, 60, 220), (30, 100, 240)),
    "yellow": ((255, 255, 0), (255, 225, 30), (240, 220, 0)),
    "orange": ((255, 165, 0), (255, 140, 0), (250, 120, 10)),
    "purple": ((128, 0, 128), (130, 40, 200), (100, 0, 140)),
    "black": ((0, 0, 0), (15, 15, 15)),
    "white": ((255, 255, 255), (245, 245, 245)),
}
BACKGROUNDS: tuple[Colour, ...] = (
    (255, 255, 255), (255, 255, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (210, 210, 210), (235, 235, 235),
    (60, 60, 60),
    (220, 235, 250), (255, 250, 225),
)  # fmt: skip
PLACES = {"top left": (0, 0), "top right": (1, 0), "middle": (0.5, 0.5), "bottom left": (0, 1), "bottom right": (1, 1)}
# Strokes of each digit in a box of width 1 and height 2, y downwards.
DIGITS: tuple[tuple[tuple[Point, ...], ...], ...] = (
    (((0.5, 0), (0.9, 0.3), (1, 1), (0.9, 1.7), (0.5, 2), (0.1, 1.7), (0, 1), (0.1, 0.3), (0.5, 0)),),
    (((0.2, 0.4), (0.6, 0), (0.6, 2)),),
    (((0, 0.4), (0.2, 0.05), (0.7, 0), (1, 0.4), (0.8, 0.9), (0, 2), (1, 2)),),
    (((0, 0.2), (0.5, 0), (0.95, 0.3), (0.8, 0.8), (0.4, 0.95), (0.85, 1.1), (1, 1.5), (0.6, 2), (0, 1.8)),),
    (((0.7, 2), (0.7, 0), (0, 1.4), (1, 1.4)),),
    (((0.95, 0), (0.1, 0), (0.05, 0.9), (0.6, 0.8), (1, 1.3), (0.7, 1.95), (0, 1.9)),),
    (((0.8, 0), (0.2, 0.7), (0, 1.4), (0.3, 2), (0.8, 1.9), (1, 1.4), (0.6, 1), (0.1, 1.2)),),
    (((0, 0), (1, 0), (0.4, 2)),),
    (((0.5, 0.95), (0.05, 0.5), (0.5, 0), (0.95, 0.5), (0.5, 0.95), (0, 1.5), (0.5, 2), (1, 1.5), (0.5, 0.95)),),
    (((1, 0.6), (0.6, 1), (0.1, 0.8), (0, 0.4), (0.4, 0), (0.9, 0.2), (1, 0.6), (0.8, 2)),),
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A filled shape: centre and radius in pixels, turn and (of a triangle) lean in degrees."""

    shape: str
    centre: Point
    radius: float
    turn: float = 0.0
    lean: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A picture: canvas in pixels, one colour, figures or the strokes of a digit (`pen` pixels wide), and how it is
    drawn.
    """

    width: int
    height: int
    colour: str
    paint: Colour
    background: Colour
    figures: tuple[Figure, ...] = ()
    digit: int | None = None
    strokes: tuple[tuple[Point, ...], ...] = ()
    pen: float = 0.0
    smooth: bool = False

    @property
    def shape(self) -> str:
        return self.figures[0].shape


def one_shape(rng: random.Random) -> Scene:
    """One large shape; half of the scenes are plain: upright and near the middle."""
    width, height = _canvas(rng)
    side, plain = min(width, height), rng.random() < 0.5
    radius = rng.uniform(0.3, 0.49) * side if plain else rng.uniform(0.24, 0.45) * side
    centre = (rng.uniform(radius, width - radius), rng.uniform(radius, height - radius))
    if plain:
        centre = (0.2 * centre[0] + 0.4 * width, 0.2 * centre[1] + 0.4 * height)
    shape = rng.choice(SHAPES)
    turn = 0.0 if plain or rng.random() < 0.3 else rng.uniform(-20, 20)
    lean = rng.uniform(-12, 12) if shape == "triangle" else 0.0
    return _scene(rng, width, height, (Figure(shape, centre, radius, turn, lean),))


def several_shapes(rng: random.Random) -> Scene:
    """One to five equal shapes, each in its own part of a grid of three by three."""
    width, height = _canvas(rng, square=True)
    shape, radius = rng.choice(SHAPES[:3]), rng.uniform(0.11, 0.14) * min(width, height)
    figures = []
    for cell in rng.sample(range(9), rng.randint(1, 5)):
        across, down = ((value + 0.5) / 3 + rng.uniform(-0.025, 0.025) for value in (cell % 3, cell // 3))
        figures.append(Figure(shape, (across * width, down * height), radius))
    return _scene(rng, width, height, tuple(figures))


def placed_shape(rng: random.Random) -> tuple[Scene, str]:
    """One shape in a corner or in the middle, and the name of that place."""
    width, height = _canvas(rng, square=True)
    radius = rng.uniform(0.12, 0.2) * min(width, height)
    place = rng.choice(list(PLACES))
    across, down = PLACES[place]
    slack = 0.08
    x = (0.22 + 0.56 * across + rng.uniform(-slack, slack) / 2) * width
    y = (0.22 + 0.56 * down + rng.uniform(-slack, slack) / 2) * height
    return _scene(rng, width, height, (Figure(rng.choice(SHAPES), (x, y), radius),)), place


def drawn_digit(rng: random.Random) -> Scene:
    """A digit as a pen draws it: size, width, slant and every corner vary."""
    width, height = _canvas(rng, square=True)
    digit, side = rng.randrange(10), min(width, height)
    tall = rng.uniform(0.3, 0.4) * side
    wide, slant = tall * rng.uniform(0.9, 1.3), rng.uniform(-0.12, 0.2)
    left, top = (
        (width - wide) / 2 + rng.uniform(-0.04, 0.04) * side,
        height / 2 - tall + rng.uniform(-0.04, 0.04) * side,
    )
    strokes = []
    for stroke in DIGITS[digit]:
        jitter = [(x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05)) for x, y in stroke]
        strokes.append(tuple((left + (x + slant * (1 - y)) * wide, top + y * tall) for x, y in jitter))
    scene = _scene(rng, width, height, ())
    pen = rng.uniform(0.06, 0.1) * side
    return Scene(width, height, scene.colour, scene.paint, scene.background, (), digit, tuple(strokes), pen, True)


def render(scene: Scene) -> Image.Image:
    """The RGB picture; a smooth one is drawn four times larger and shrunk."""
    scale = 3 if scene.smooth else 1
    image = Image.new("RGB", (scene.width * scale, scene.height * scale), scene.background)
    draw_on(image, scene, scale, scene.paint)
    return image.resize((scene.width, scene.height), Image.Resampling.BOX) if scene.smooth else image


def mask(scene: Scene) -> Image.Image:
    """White (255) where something is drawn, black elsewhere; mode "L"."""
    image = Image.new("L", (scene.width, scene.height), 0)
    draw_on(image, scene, 1, 255)
    return image


def draw_on(image: Image.Image, scene: Scene, scale: int, fill: Colour | int) -> None:
    pen = ImageDraw.Draw(image)
    for figure in scene.figures:
        (x, y), radius = (value * scale for value in figure.centre), figure.radius * scale
        if figure.shape == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        else:
            pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _corners(figure)], fill=fill)
    for stroke in scene.strokes:
        points = [(x * scale, y * scale) for x, y in stroke]
        width = max(1, round(scene.pen * scale))
        pen.line(points, fill=fill, width=width, joint="curve")
        for x, y in points:
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=fill)


def _scene(rng: random.Random, width: int, height: int, figures: tuple[Figure, ...]) -> Scene:
    colour = rng.choice(list(COLOURS))
    paint = _near(rng.choice(COLOURS[colour]), 10, rng)
    return Scene(width, height, colour, paint, _background(paint, rng), figures, smooth=rng.random() < 0.5)


def _canvas(rng: random.Random, square: bool = False) -> tuple[int, int]:
    if rng.random() < (0.8 if square else 0.5):
        side = rng.choice((112, 112, 128, 160, 200, 224))
        return side, side
    if square:
        width = rng.randint(112, 300)
        return width, round(width * rng.uniform(0.8, 1.25))
    width = rng.randint(64, 400)
    return width, round(width * rng.uniform(0.6, 1.5))


def _background(paint: Colour, rng: random.Random) -> Colour:
    """White, black, grey or pale, far enough from the paint to be seen."""
    while True:
        colour = _near(rng.choice(BACKGROUNDS), rng.choice((0, 0, 8)), rng)
        if math.dist(colour, paint) > 90:
            return colour


def _near(colour: Colour, spread: int, rng: random.Random) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in colour)
    return red, green, blue


def _corners(figure: Figure) -> list[Point]:
    """Corners on the unit circle around the centre, upright at turn 0; y grows downwards."""
    if figure.shape == "square":
        angles, radii = [45.0, 135.0, 225.0, 315.0], [1.0] * 4
    elif figure.shape == "triangle":
        angles, radii = [-90.0, 30.0 + figure.lean, 150.0 - figure.lean], [1.0] * 3
    else:
        angles, radii = [-90.0 + 36 * corner for corner in range(10)], [1.0, 0.42] * 5
    turned = [math.radians(angle + figure.turn) for angle in angles]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle, radius in zip(turned, radii, strict=True)]
