"""A slow and plain bicubic resize, pixel by pixel, in float64: the twin of the matrix products."""

import math

import numpy as np


def cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, C] -> float64 [height, width, C]: half-pixel centers, repeated edges, no antialiasing."""
    out = np.zeros((height, width, image.shape[2]))
    for y in range(height):
        for x in range(width):
            sy = (y + 0.5) * image.shape[0] / height - 0.5
            sx = (x + 0.5) * image.shape[1] / width - 0.5
            for j in range(math.floor(sy) - 1, math.floor(sy) + 3):
                for i in range(math.floor(sx) - 1, math.floor(sx) + 3):
                    pixel = image[min(max(j, 0), image.shape[0] - 1), min(max(i, 0), image.shape[1] - 1)]
                    out[y, x] += cubic(sy - j) * cubic(sx - i) * pixel
    return out
