"""Small random checkpoints of any shape, and what transformers' own mistral3 + mistral4 classes make of them.

The oracle: parameter names are the same on both sides, so a state dict moves over as it is. Knows the public
configuration of both sides and nothing of our code's insides.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Mistral4Config, PixtralVisionConfig

from modeling_small4 import Small4Config, Small4ForCausalLM

TEXT = {
    "vocab_size": 1100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 112,
    "patch_size": 14,
}


@dataclass
class Case:
    """One shape of model. `text` and `vision` override the fields of `TEXT` and `VISION`; `vision=None` leaves the
    tower out.
    """

    seed: int = 0
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] | None = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    rule: str = "released"
    yarn: dict[str, Any] = field(default_factory=dict)

    @property
    def rope(self) -> dict[str, Any]:
        """A short original context, so that short prompts reach YaRN's and the query scale's long range."""
        base = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 128.0, "original_max_position_embeddings": 32}
        return base | {"beta_fast": 32.0, "beta_slow": 1.0, "llama_4_scaling_beta": 0.1} | self.yarn

    def config(self) -> Small4Config:
        """Our configuration of this case."""
        text = TEXT | self.text | {"rope_parameters": self.rope, "softmax_scale_rule": self.rule}
        vision = None if self.vision is None else VISION | self.vision
        return Small4Config(text_config=text, vision_config=vision, **self.top)

    def host_config(self) -> Mistral3Config:
        """transformers' configuration of this case, with the softmax scale set explicitly."""
        text = TEXT | self.text
        magnitude = {"attention_factor": 1.0, "mscale_all_dim": 0.0}
        if self.rule == "transformers":
            magnitude = {"mscale": 1.0, "mscale_all_dim": 1.0}
        rotary = text["qk_rope_head_dim"] / (text["qk_rope_head_dim"] + text["qk_nope_head_dim"])
        rope = self.rope | magnitude | {"partial_rotary_factor": rotary}
        text = text | {"num_key_value_heads": text["num_attention_heads"], "rope_parameters": rope}
        vision = VISION | (self.vision or {}) | {"hidden_act": "silu"}
        return Mistral3Config(
            text_config=Mistral4Config(**text),
            vision_config=PixtralVisionConfig(**vision),
            image_token_index=10,
            tie_word_embeddings=False,
            **self.top,
        )

    def models(self) -> tuple[Small4ForCausalLM, Mistral3ForConditionalGeneration]:
        """Ours and transformers', float32, with the same random weights, made large enough that logits are far from
        uniform.
        """
        torch.manual_seed(self.seed)
        host = Mistral3ForConditionalGeneration(self.host_config()).eval()
        with torch.no_grad():
            for name, parameter in host.named_parameters():
                if "norm" in name or "ln_pre" in name:
                    parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
                elif name.endswith("bias"):
                    parameter.copy_(0.1 * torch.randn_like(parameter))
                else:
                    fan_in = parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]
                    parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
            host.get_input_embeddings().weight.mul_(TEXT["hidden_size"] ** 0.5)
        ours = Small4ForCausalLM(self.config()).eval()
        state = host.state_dict()
        if self.vision is None:
            state = {k: v for k, v in state.items() if "vision_tower" not in k and "multi_modal_projector" not in k}
        ours.load_state_dict(state)
        return ours, host


def text_ids(case: Case, batch: int = 2, length: int = 90) -> torch.Tensor:
    """Random ids that are no control tokens."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    return torch.randint(1000, case.config().text_config.vocab_size, (batch, length), generator=generator)


def image_inputs(case: Case, sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """One prompt with an image of each size (height, width in pixels): ids, pixels and sizes as the processor would
    give them.
    """
    generator = torch.Generator().manual_seed(case.seed + 2)
    config = case.config()
    unit = config.vision_config.patch_size * config.spatial_merge_size
    ids = torch.randint(1000, config.text_config.vocab_size, (20,), generator=generator).tolist()
    for height, width in sizes:
        rows = ([10] * (width // unit) + [12]) * (height // unit)
        ids += [*rows[:-1], 13, *torch.randint(1000, config.text_config.vocab_size, (7,), generator=generator).tolist()]
    pixels = torch.zeros(len(sizes), 3, max(s[0] for s in sizes), max(s[1] for s in sizes))
    for index, (height, width) in enumerate(sizes):
        pixels[index, :, :height, :width] = torch.randn(3, height, width, generator=generator)
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
