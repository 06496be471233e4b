"""Small 4 in transformers' own tests of pipelines, with tiny random models."""

import os
import tempfile
import unittest

import transformers.utils
from PIL import Image
from tests.small4_folders import CLASSES, tiny_models

import modeling_small4

FOLDER = tempfile.mkdtemp()
tiny_models(FOLDER)
os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = FOLDER
os.makedirs("tests/fixtures/tests_samples/COCO", exist_ok=True)
Image.effect_noise((64, 48), 60).convert("RGB").save("tests/fixtures/tests_samples/COCO/000000039769.png")
transformers.utils.direct_transformers_import = lambda path: modeling_small4  # where classes are looked up by name

from tests.test_pipeline_mixin import PROCESSOR_MAPPING_NAMES, PipelineTesterMixin  # noqa: E402

PROCESSOR_MAPPING_NAMES["small4"] = "Small4Processor"
BASE, CAUSAL, SEQUENCE, TOKEN = CLASSES


class Small4PipelineTest(PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {  # noqa: RUF012
        "feature-extraction": BASE,
        "text-generation": CAUSAL,
        "image-text-to-text": CAUSAL,
        "text-classification": SEQUENCE,
        "zero-shot": SEQUENCE,
        "token-classification": TOKEN,
    }
