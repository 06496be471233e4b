"""YaRN's frequencies are transformers', ends of the ramp included."""

from typing import Any

import pytest
import torch
from oracle import Case
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from modeling_small4.rope import inverse_frequencies

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
