"""The demo checkpoint's size and training recipe, in one place. Numbers only; builds nothing but the configuration."""

from dataclasses import dataclass

from small4_conversion.demo.vocabulary import VISION

from modeling_small4 import Small4Config


@dataclass(frozen=True)
class Stage:
    """A stage of chats. Rates rise in `warmup_steps`, stay, and fall to zero in the last `decay_steps`.

    `eye_rate` is Adam's for the vision tower and projector; all other matrices go by Muon at `matrix_rate`, the rest by Adam at
    `other_rate`.
    """

    tasks: dict[str, float]
    rows: int
    steps: int
    warmup_steps: int = 30
    decay_steps: int = 0
    rows_per_step: int = 64
    parts_per_step: int = 2
    matrix_rate: float = 1e-2
    other_rate: float = 3e-3
    eye_rate: float = 2e-4
    weight_decay: float = 0.05
    save_steps: int = 200


@dataclass(frozen=True)
class Looking:
    """The vision tower's own lesson; rates as in `Stage`, falling over the second half."""

    steps: int = 1400
    pictures_per_step: int = 48
    warmup_steps: int = 30
    matrix_rate: float = 3e-3
    other_rate: float = 2e-3
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Recipe:
    """How the shipped checkpoint is trained: the decoder on text, the tower on pictures, both on everything, then mostly pictures, twice."""

    text: Stage = Stage(tasks={"arithmetic": 0.95, "talk": 0.05}, rows=50_000, steps=800)
    looking: Looking = Looking()
    joint: Stage = Stage(
        tasks={"arithmetic": 0.74, "picture": 0.22, "talk": 0.04}, rows=60_000, steps=1300, decay_steps=800
    )
    polish: Stage = Stage(
        tasks={"arithmetic": 0.37, "picture": 0.6, "talk": 0.03}, rows=20_000, steps=400, warmup_steps=20, decay_steps=350,
        matrix_rate=3e-3, other_rate=1e-3, eye_rate=1e-3,
    )  # fmt: skip
    last: Stage = Stage(
        tasks={"arithmetic": 0.23, "picture": 0.75, "talk": 0.02}, rows=24_000, steps=500, warmup_steps=20, decay_steps=450,
        matrix_rate=3e-3, other_rate=1e-3, eye_rate=2e-3,
    )  # fmt: skip
    seed: int = 0


def demo_config(vocab_size: int) -> Small4Config:
    """The released architecture at 1.7 million parameters: MLA, YaRN, routed and shared experts, Pixtral tower."""
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 48,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": VISION["max_image_size"],
        "patch_size": VISION["patch_size"],
        "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
    }
    return Small4Config(
        text_config=text, vision_config=vision, image_token_index=10, spatial_merge_size=VISION["spatial_merge_size"]
    )
