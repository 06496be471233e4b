"""The Triton kernel for stored weights, run by Triton's interpreter on a CPU, against float64. Skipped without
Triton.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
import sys
import stored_cases as cases
import torch
from modeling_small4.stored_triton import FORMS, _is_right, triton_products, triton_takes

for form in cases.FORMS:
    shapes = [(5, 128), (11, 384)] + [(130, 256)] * (form == "fp8 blocks")
    weights = [cases.stored(form, rows, columns, seed) for seed, (rows, columns) in enumerate(shapes)]
    for dtype in (torch.float32, torch.bfloat16)[len(form) % 2 :]:
        inputs = [torch.randn(tokens, weight.columns).to(dtype) for tokens, weight in zip((1, 3, 1), weights)]
        for weight, x, out in zip(weights, inputs, triton_products(weights, inputs)):
            numbers = weight.expand().double()
            exact, size = x.double() @ numbers.T, x.double().abs() @ numbers.abs().T
            rounding = exact.abs() * (2**-8 if dtype == torch.bfloat16 else 0)
            assert out.dtype == dtype and out.shape == exact.shape
            assert bool(((out.double() - exact).abs() <= size * 2**-21 + rounding).all()), form
weight = cases.stored("fp8", 8, 128)
weight.codes.view(torch.uint8)[2, 5] = 0x7F
assert triton_products([weight], [torch.ones(1, 128)])[0].isnan()[0].tolist() == [i == 2 for i in range(8)]
assert all(_is_right(form, torch.device("cpu")) for form in FORMS)
assert not triton_takes([weight], [torch.ones(1, 128)]), "only on GPUs"
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_against_expanded_numbers() -> None:
    """In a process of its own, for Triton reads the variable when it is imported."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
