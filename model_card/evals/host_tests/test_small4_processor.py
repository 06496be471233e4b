"""Small 4's processor in transformers' own test class."""

import unittest

from fetch_hub_objects_for_ci import FILE
from tests.small4_folders import DEMO
from tests.test_processing_common import ProcessorTesterMixin

from modeling_small4 import ImageAccess, Small4Processor


class Small4ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = Small4Processor
    model_id = DEMO

    def get_processor(self, use_tiny_ckpt: bool = True) -> Small4Processor:
        """Allowed to read the one file that the tests name; a processor of ours reads none unless it is told."""
        processor = super().get_processor(use_tiny_ckpt)
        processor.image_processor.access = ImageAccess(paths=(str(FILE.parent),))
        return processor
