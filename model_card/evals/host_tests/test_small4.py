"""Small 4 in transformers' own test class."""

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from modeling_small4 import Small4Config, Small4ForCausalLM, Small4Model

MODEL_MAPPING_NAMES["small4"] = "Small4Model"  # by this name the tests know that it has no head, and so no loss


class Small4ModelTester:
    """A tiny model with a tower, and one image in each row."""

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent, self.is_training = parent, True
        self.batch_size, self.image_size, self.patch_size, self.spatial_merge_size = 2, 28, 14, 1
        self.image_token_index, self.num_channels = 10, 3
        self.num_image_tokens = (self.image_size // self.patch_size) ** 2
        self.seq_length = 7 + self.num_image_tokens
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 4
        self.vocab_size, self.pad_token_id = 99, 1

    def get_config(self) -> Small4Config:
        rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
        text = {
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "intermediate_size": 48,
            "moe_intermediate_size": 16, "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads, "q_lora_rank": 16, "kv_lora_rank": 16,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "max_position_embeddings": 512, "pad_token_id": self.pad_token_id,
            "bos_token_id": 2, "eos_token_id": 3, "rope_parameters": rope,
        }  # fmt: skip
        vision = {
            "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": self.image_size, "patch_size": self.patch_size,
        }  # fmt: skip
        return Small4Config(
            text_config=text, vision_config=vision, image_token_index=self.image_token_index, spatial_merge_size=1
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Small4Config, dict[str, torch.Tensor]]:
        config = self.get_config()
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 20) + 15
        input_ids[:, : self.num_image_tokens] = self.image_token_index
        pixels = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": pixels,
            "image_sizes": torch.tensor([[self.image_size, self.image_size]] * self.batch_size),
        }


class Small4ModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (Small4Model, Small4ForCausalLM)
    all_generative_model_classes = (Small4ForCausalLM,)
    _is_composite = True

    def setUp(self) -> None:
        self.model_tester = Small4ModelTester(self)


for name in vars(GenerationTesterMixin):  # these run in test_small4_generation.py
    if name.startswith("test_") and not hasattr(ModelTesterMixin, name):
        setattr(Small4ModelTest, name, None)
