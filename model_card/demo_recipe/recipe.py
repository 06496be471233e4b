"""The demo checkpoint's size and training recipe, in one place. Numbers only; builds nothing but the configuration."""

from dataclasses import dataclass, field

from model_card.demo_recipe.tasks.data import TASKS
from model_card.demo_recipe.vocabulary import VISION
from modeling_small4 import Small4Config


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Steps and rates that every part of training has. Rates rise in `warmup_steps`; matrices go by Muon at
    `matrix_rate`, the rest by Adam at `other_rate`."""

    steps: int
    warmup_steps: int = 30
    matrix_rate: float = 5e-3
    other_rate: float = 3e-3
    weight_decay: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Looking(Lesson):
    """The vision tower's own lesson; rates fall over the second half."""

    steps: int = 2400
    pictures_per_step: int = 48
    matrix_rate: float = 3e-3
    other_rate: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class Recalling(Lesson):
    """The decoder's own lesson; rows are very short for `short_steps`, then grow for `growing_steps`."""

    steps: int = 900
    short_steps: int = 150
    growing_steps: int = 450
    rows_per_step: int = 64


@dataclass(frozen=True, kw_only=True)
class Stage(Lesson):
    """A stage of chats. Rates fall to zero in the last `decay_steps`; `eye_rate` is Adam's for the vision tower and
    projector.

    `tasks` and `context` are the weights of what rows are about and of retrieval's lengths; `reworded` is the share of
    rows in wider wording, `in_json` that of rows whose answers are JSON, and `first_lines` that of stories and sums in
    wider wording that end behind the first line of their thought.
    """

    rows: int
    tasks: dict[str, float] = field(default_factory=lambda: dict(TASKS))
    context: dict[int, float] | None = None
    reworded: float = 0.0
    in_json: float = 0.0
    first_lines: float = 0.0
    decay_steps: int = 0
    rows_per_step: int = 64
    parts_per_step: int = 2
    eye_rate: float = 1e-3
    save_steps: int = 150


@dataclass(frozen=True)
class Recipe:
    """How the shipped checkpoint is trained: the tower on pictures, the decoder on random tokens, then everything: in
    short rows, in longer ones while rates fall, and twice more in wider wording, at last with less of it. Few rows are
    very long, so that most batches keep their gaps in positions."""

    looking: Looking = Looking()
    recalling: Recalling = Recalling()
    short: Stage = Stage(
        rows=70_000,
        steps=1500,
        rows_per_step=32,
        tasks=TASKS | {"drill": 0.6},
        context={64: 1, 96: 2, 128: 2, 192: 2, 256: 2, 384: 1},
    )
    long: Stage = Stage(
        rows=240_000, steps=6000, context={128: 3, 256: 3, 384: 2, 3000: 0.15, 4500: 0.15}, warmup_steps=10,
            decay_steps=5990,
        tasks={
            "arithmetic": 0.13, "difference": 0.08, "table": 0.03, "word_problem": 0.07, "puzzle": 0.16,
            "hard puzzle": 0.08,
            "program": 0.12, "hard program": 0.06, "tools": 0.05, "hard tools": 0.03, "retrieval": 0.06,
            "picture": 0.08,
            "talk": 0.02, "drill": 0.02, "small step": 0.04,
        },
    )  # fmt: skip
    wording: Stage = Stage(
        rows=200_000, steps=3100, context={128: 3, 256: 3, 384: 2, 3000: 0.1, 5500: 0.05, 8192: 0.05}, decay_steps=3070,
        matrix_rate=4e-3, other_rate=2e-3, eye_rate=5e-4, reworded=0.7, in_json=0.07,
        tasks={
            "arithmetic": 0.13, "difference": 0.03, "table": 0.02, "word_problem": 0.22, "puzzle": 0.2,
            "hard puzzle": 0.05,
            "program": 0.09, "hard program": 0.04, "tools": 0.06, "hard tools": 0.02, "retrieval": 0.1,
            "picture": 0.06,
            "talk": 0.04, "drill": 0.02, "small step": 0.03,
        },
    )  # fmt: skip
    last: Stage = Stage(
        rows=384_000, steps=3000, rows_per_step=128, decay_steps=2970, reworded=0.8, in_json=0.06, first_lines=0.75,
        context={128: 3, 256: 3, 384: 2, 3000: 0.05, 5500: 0.025, 8192: 0.025},
        matrix_rate=4e-3, other_rate=2e-3, eye_rate=4e-4,
        tasks={
            "arithmetic": 0.13, "difference": 0.03, "table": 0.01, "word_problem": 0.26, "puzzle": 0.21,
            "hard puzzle": 0.03,
            "program": 0.07, "hard program": 0.02, "tools": 0.06, "hard tools": 0.01, "retrieval": 0.15,
            "picture": 0.04,
            "talk": 0.03, "drill": 0.01, "small step": 0.02,
        },
    )  # fmt: skip
    seed: int = 0


def demo_config(vocab_size: int) -> Small4Config:
    """The released architecture at 1.8 million parameters: MLA, YaRN, routed and shared experts, Pixtral tower."""
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 24,
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
