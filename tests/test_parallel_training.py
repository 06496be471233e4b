"""Two processes train one model in every layout that trains: losses, gradients and saved checkpoints equal one
process's.
"""

import json
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import training_worker
from training_worker import IDS, LOADS, RATE, train

from modeling_small4 import Small4ForCausalLM

TESTS = Path(__file__).resolve().parent
pytestmark = pytest.mark.slow
RUNS = [f"{name}, {router}" for name, router in training_worker.RUNS]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[bool, tuple[Small4ForCausalLM, list[float]]]:
    """The same training in one process, without and with router losses."""
    out = {}
    for router in (False, True):
        model = Small4ForCausalLM.from_pretrained(folder)
        losses = train(model, folder, router)
        out[router] = (model.eval(), losses)
    return out


@pytest.fixture(scope="module")
def together(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of all checkpoints, and what each of the two processes found."""
    out = tmp_path_factory.mktemp("together")
    forked.together(TESTS / "training_worker.py", str(folder), str(out))
    return out, [json.loads((out / f"report.{rank}.json").read_text()) for rank in (0, 1)]


def test_weights_are_sharded(together: Any, folder: Path) -> None:
    """Not silently whole on both."""
    parameters = len(list(Small4ForCausalLM.from_pretrained(folder).parameters()))
    for found in together[1]:
        assert found["sharded"]["fsdp"] == parameters
        assert all(count >= 10 for count in found["sharded"].values())


@pytest.mark.parametrize("run", RUNS)
def test_losses(together: Any, alone: Any, run: str) -> None:
    for found in together[1]:
        assert found["losses"][run] == pytest.approx(alone[run.endswith("True")][1], rel=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_gradients(together: Any, alone: Any, folder: Path, run: str) -> None:
    """After plain gradient descent, weights differ by gradients: each saved checkpoint, loaded by one process, is the
    one trained alone.
    """
    model = Small4ForCausalLM.from_pretrained(together[0] / run)
    expected = dict(alone[run.endswith("True")][0].named_parameters())
    start = dict(Small4ForCausalLM.from_pretrained(folder).named_parameters())
    for name, weight in model.named_parameters():
        moved = (expected[name] - start[name]).abs().max()
        assert (weight - expected[name]).abs().max() <= 1e-5 * max(1.0, moved.item() / RATE), name
    assert max((expected[name] - start[name]).abs().max().item() for name in start) > 1e-3


@pytest.mark.parametrize(("run", "layout"), LOADS)
def test_checkpoints_load_in_other_layouts(together: Any, alone: Any, run: str, layout: str) -> None:
    with torch.no_grad():
        expected = alone[run.endswith("True")][0](IDS).logits
    for found in together[1]:
        got = torch.tensor(found["logits"][f"{run} in {layout}"])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
