"""Two processes share one model, in every layout of transformers' `DistributedConfig`: what they answer, and what each
holds.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from forked import together
from generation_cases import tiny_model
from parallel_worker import CASE, LAYOUTS

from modeling_small4.planner.layout import plan

TESTS = Path(__file__).resolve().parent
INNER = "model.language_model.layers.0"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("parallel")
    CASE.models()[0].save_pretrained(folder / "plain")
    chatty = tiny_model(vision=True)
    chatty.generation_config._from_model_config = False
    chatty.save_pretrained(folder / "chatty")
    words = (str(folder / "plain"), str(folder / "chatty"), str(folder / "report"))
    assert "match nothing" not in together(TESTS / "parallel_worker.py", *words)
    return [json.loads((folder / f"report.{rank}.json").read_text()) for rank in (0, 1)]


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_as_one_process(ranks: list[dict[str, Any]], layout: str) -> None:
    for rank in ranks:
        found = rank[layout]
        for inputs in ("text", "padded", "images"):
            assert found[inputs] <= 1e-5, inputs
            assert found[f"{inputs} greedy"], inputs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reasoning_modes(ranks: list[dict[str, Any]], layout: str) -> None:
    for rank in ranks:
        for mode, thinks in (
            ("none", [False] * 3),
            ("high", [True] * 3),
            (["none", "high", "high"], [False, True, True]),
        ):
            assert rank[layout][f"mode {mode}"]
            assert rank[layout][f"thinks {mode}"] == thinks


def test_what_is_cut(ranks: list[dict[str, Any]]) -> None:
    """Attention heads too: of 4 heads each rank has 2, of 8 experts all but half as wide, or 4."""
    text = CASE.config().text_config
    heads, experts = text.num_attention_heads, text.n_routed_experts
    for rank in ranks:
        tensor, expert = rank["tensor"]["shapes"], rank["tensor and expert"]["shapes"]
        for shapes in (tensor, expert):
            assert shapes[f"{INNER}.self_attn.q_b_proj.weight"] == [heads // 2 * text.qk_head_dim, text.q_lora_rank]
            up = heads // 2 * (text.qk_nope_head_dim + text.v_head_dim)
            assert shapes[f"{INNER}.self_attn.kv_b_proj.weight"] == [up, text.kv_lora_rank]
            assert shapes[f"{INNER}.self_attn.o_proj.weight"] == [text.hidden_size, heads // 2 * text.v_head_dim]
            assert (
                shapes[f"{INNER}.self_attn.kv_a_proj_with_mqa.weight"][0] == text.kv_lora_rank + text.qk_rope_head_dim
            )
        assert tensor[f"{INNER}.mlp.experts.gate_up_proj"] == [experts, text.moe_intermediate_size, text.hidden_size]
        assert expert[f"{INNER}.mlp.experts.gate_up_proj"] == [
            experts // 2,
            2 * text.moe_intermediate_size,
            text.hidden_size,
        ]


def test_fsdp_divides_decoder_and_tower(ranks: list[dict[str, Any]]) -> None:
    held = [rank["fsdp"]["shapes"] for rank in ranks]
    whole = dict.fromkeys(held[0], 0)
    for shapes in held:
        for name, shape in shapes.items():
            whole[name] += shape[0]
    for name in (
        f"{INNER}.self_attn.q_a_proj.weight",
        "model.vision_tower.transformer.layers.0.attention.q_proj.weight",
    ):
        rows = {"q_a_proj": CASE.config().text_config.q_lora_rank, "q_proj": CASE.config().vision_config.hidden_size}
        assert whole[name] == rows[name.split(".")[-2]]


@pytest.mark.parametrize(("layout", "planned"), [("tensor", "tensor"), ("tensor and expert", "expert")])
def test_each_rank_holds_what_the_planner_says(ranks: list[dict[str, Any]], layout: str, planned: str) -> None:
    made = plan(CASE.config(), "2xH100", "float32", layout=planned)
    assert [rank[layout]["bytes"] for rank in ranks] == [sum(load.weights.values()) for load in made.loads]


def test_a_pipeline_divides_the_layers(ranks: list[dict[str, Any]]) -> None:
    held = [
        {name.split(".")[3] for name in rank["pipeline"]["shapes"] if ".language_model.layers." in name}
        for rank in ranks
    ]
    # The odd layer goes to the last stage in transformers 5.23, to the first from 5.24 on.
    assert held in ([{"0"}, {"1", "2"}], [{"0", "1"}, {"2"}])
    assert ["lm_head.weight" in rank["pipeline"]["shapes"] for rank in ranks] == [False, True]
    assert [
        any("embed_tokens" in name or "vision" in name for name in rank["pipeline"]["shapes"]) for rank in ranks
    ] == [True, False]
