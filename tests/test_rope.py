"""YaRN's frequencies are transformers', ends of the ramp included; rotations are those of complex numbers."""

import math
from typing import Any

import pytest
import torch
from oracle import Case
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from modeling_small4.rope import (
    image_positions,
    inverse_frequencies,
    long_position_query_scale,
    rotate_halves,
    rotate_pairs,
)

RAMPS: dict[str, dict[str, Any]] = {
    "as the tests' models": {},
    "beyond the last pair": {"rope_theta": 50.0, "original_max_position_embeddings": 65536, "beta_fast": 2000.0},
    "beyond it, not rounded": {
        "rope_theta": 50.0, "original_max_position_embeddings": 2**18, "beta_fast": 5000.0, "truncate": False,
    },
    "before the first pair": {"original_max_position_embeddings": 4},
    "before it, not rounded": {"original_max_position_embeddings": 20, "truncate": False},
    "no ramp": {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096},
}  # fmt: skip


@pytest.mark.parametrize("name", RAMPS)
def test_frequencies(name: str) -> None:
    case = Case(yarn=RAMPS[name], text={"qk_rope_head_dim": 16})
    host = case.host_config().text_config
    expected, amplitude = ROPE_INIT_FUNCTIONS["yarn"](host, torch.device("cpu"))
    assert amplitude == 1.0
    torch.testing.assert_close(inverse_frequencies(case.config().text_config), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotations_are_products_of_complex_numbers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, angles = torch.randn(2, 3, 5, 8).to(dtype), torch.randn(2, 5, 4)
    turn = torch.polar(torch.ones(2, 5, 4), angles)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (4, 2)).contiguous()) * turn[:, None]
    halves = torch.complex(x[0, ..., :4].float(), x[0, ..., 4:].float()) * turn[0]
    for found, expected in (
        (rotate_pairs(x, angles.cos(), angles.sin()), pairs),
        (rotate_halves(x[0], angles[0].cos(), angles[0].sin()), halves),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found, torch.cat((expected.real, expected.imag), dim=-1).to(dtype))


def test_patches_turn_with_their_row_and_column() -> None:
    config = Case(vision={"hidden_size": 48}).config().vision_config
    assert config is not None
    rows, columns = torch.tensor([0, 1, 5, 7]), torch.tensor([3, 0, 2, 7])
    cos, sin = image_positions(config, rows, columns)
    frequencies = [config.rope_parameters["rope_theta"] ** (-2 * i / config.head_dim) for i in range(12)]
    for patch in range(4):
        angles = [rows[patch] * frequency for frequency in frequencies[0::2]]
        angles += [columns[patch] * frequency for frequency in frequencies[1::2]]
        torch.testing.assert_close(cos[patch], torch.tensor(angles).cos())
        torch.testing.assert_close(sin[patch], torch.tensor(angles).sin())


@pytest.mark.parametrize("original", [32, None])
def test_queries_beyond_the_original_context_are_scaled(original: int | None) -> None:
    """Without a length of its own, the original context is the model's."""
    config = Case(text={"max_position_embeddings": 64}).config().text_config
    config.rope_parameters["original_max_position_embeddings"] = original
    if original is None:
        del config.rope_parameters["original_max_position_embeddings"]
    places = [-3, 0, 31, 32, 63, 64, 1000]
    expected = [1 + 0.1 * math.log(1 + max(place, 0) // (original or 64)) for place in places]
    scale = long_position_query_scale(config, torch.tensor([places]))
    assert scale is not None
    torch.testing.assert_close(scale, torch.tensor(expected).view(1, 1, -1, 1))
    for beta in (0.0, None):
        config.rope_parameters["llama_4_scaling_beta"] = beta
        assert long_position_query_scale(config, torch.tensor([places])) is None
