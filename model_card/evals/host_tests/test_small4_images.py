"""Small 4's image processor in transformers' own test class."""

import unittest
from typing import Any

from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin

from modeling_small4 import Small4ImageProcessor


class Small4ImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase) -> None:
        super().__init__(parent, patch_size=14, spatial_merge_size=2, max_image_size=112)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": Small4ImageProcessor}

    def expected_output_image_shape(self, images: list[Any]) -> tuple[int, int, int]:
        processor = Small4ImageProcessor(**self.prepare_image_processor_dict())
        grids = [processor.token_grid(*_size(image)) for image in images]
        rows, columns = (max(sides) for sides in zip(*grids, strict=True))
        return 3, rows * processor.unit, columns * processor.unit


def _size(image: Any) -> tuple[int, int]:
    """(width, height) of a PIL image, or of an array with its channels first or last."""
    if isinstance(image.size, tuple):
        return image.size
    height, width = image.shape[1:] if image.shape[0] in (1, 3, 4) else image.shape[:2]
    return width, height


class Small4ImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = Small4ImageProcessingTester
