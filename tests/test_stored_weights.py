"""Stored weights alone: the numbers they stand for, their parts, and products with them."""

import pytest
import stored_cases as cases
import torch

from modeling_small4 import stored_weights
from modeling_small4.stored_kernels import padded, product, product_transposed


@pytest.mark.parametrize("form", cases.FORMS)
def test_numbers_are_code_times_scale_rounded_once(form: str) -> None:
    weight = cases.stored(form, rows=11 if form != "fp8 blocks" else 150)
    assert torch.equal(weight.expand(), cases.numbers(weight))


@pytest.mark.parametrize("form", cases.FORMS)
def test_parts_are_views_of_the_whole(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_weights, "PIECE", 1)
    weight = cases.stored(form, rows=300)
    parts = list(weight.pieces())
    assert [rows for rows, _ in parts] == [slice(0, 128), slice(128, 256), slice(256, 300)]
    assert torch.equal(torch.cat([part.expand() for _, part in parts]), weight.expand())
    for _, part in parts:
        assert part.codes.untyped_storage().data_ptr() == weight.codes.untyped_storage().data_ptr()


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_products_are_those_of_the_expanded_weight(form: str, tokens: int, dtype: torch.dtype) -> None:
    weight = cases.stored(form, seed=3)
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(tokens, weight.columns, generator=generator).to(dtype)
    grad = torch.randn(tokens, weight.rows, generator=generator).to(dtype)
    whole = weight.expand().to(dtype)
    for found, exact in (
        (product(weight, inputs), inputs.double() @ whole.double().T),
        (product_transposed(weight, grad), grad.double() @ whole.double()),
    ):
        assert found.dtype == dtype
        precision = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
        torch.testing.assert_close(
            found.double(), exact, rtol=precision, atol=precision * float(exact.abs().max()) if tokens else 0
        )


@pytest.mark.parametrize("form", cases.FORMS)
def test_bytes(form: str) -> None:
    weight = cases.stored(form, rows=256, columns=256)
    bits = {
        "fp8": 8 + 16 / 256**2,
        "fp8 rows": 8 + 32 / 256,
        "fp8 blocks": 8 + 4 * 32 / 256**2,
        "nvfp4": 4.5 + 32 / 256**2,
    }
    bits |= {f"int4 {group}": 4 + 16 / group for group in (32, 64, 128)} | {"int4 zeros": 4 + 20 / 32}
    assert weight.nbytes == 256 * 256 * bits[form] / 8


def test_few_counts_of_tokens_are_multiplied() -> None:
    """Each costs a compiled kernel in half precision."""
    half = [padded(torch.ones(count, 1, dtype=torch.bfloat16)) for count in range(4097)]
    assert all(count <= len(tokens) <= max(16, 1.34 * count + 15) for count, tokens in enumerate(half))
    assert all(tokens.sum(dtype=torch.float32) == count for count, tokens in enumerate(half))
    assert len({len(tokens) for tokens in half}) < 40
    assert len(padded(torch.empty(77, 1))) == 77
