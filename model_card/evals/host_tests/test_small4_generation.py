"""Small 4 in transformers' own test class for `generate`."""

import unittest

from tests.generation import test_utils
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin
from tests.test_small4 import Small4ModelTester
from transformers import DynamicCache
from transformers.cache_utils import Cache

from modeling_small4 import LatentCache, Small4Config, Small4ForCausalLM, Small4TextConfig

test_utils.DynamicCache = (DynamicCache, LatentCache)  # only asked for with isinstance: a cache that is no static one


class Small4GenerationTest(GenerationTesterMixin, ModelTesterMixin, unittest.TestCase):
    all_model_classes = all_generative_model_classes = (Small4ForCausalLM,)
    _is_composite = True

    def setUp(self) -> None:
        self.model_tester = Small4ModelTester(self)

    def _check_past_key_values_for_generate(
        self, batch_size: int, past_key_values: Cache, seq_length: int, config: Small4Config | Small4TextConfig
    ) -> None:
        """One latent and one rotary key per token, as transformers' tests of other models with latent attention say
        what theirs cache.
        """
        text = config.get_text_config()
        expected = (batch_size, 1, seq_length, text.kv_lora_rank + text.qk_rope_head_dim)
        assert len(past_key_values.layers) == text.num_hidden_layers
        for layer in past_key_values.layers:
            assert tuple(layer.keys.shape) == expected


for name in dir(ModelTesterMixin):  # these run in test_small4.py
    if name.startswith("test_") and name not in vars(GenerationTesterMixin):
        setattr(Small4GenerationTest, name, None)
