"""Experts and linears on a CPU by our own kernel: outputs and gradients beside one expert after the other, in float64
and in half precision.
"""

from typing import Any

import pytest
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from modeling_small4 import Small4TextConfig, cpu_matmul
from modeling_small4.cpu_matmul import grouped_experts, linear
from modeling_small4.moe import Small4Experts

EXPERTS, TOP_K, HIDDEN = 8, 3, 40
EAGER = Small4Experts.forward.__wrapped__  # type: ignore[attr-defined]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def always_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little work there is, and with more than one block of rows and of tokens."""
    monkeypatch.setattr(cpu_matmul, "ENOUGH", 0)
    monkeypatch.setattr(cpu_matmul, "ROWS", 32)
    monkeypatch.setattr(cpu_matmul, "MANY", 50)


def experts(dtype: torch.dtype = torch.float32, width: int = 27) -> Small4Experts:
    sizes = {"hidden_size": HIDDEN, "moe_intermediate_size": width, "n_routed_experts": EXPERTS}
    config = Small4TextConfig(**sizes, num_experts_per_tok=TOP_K)
    config._experts_implementation = "grouped_mm"
    module = Small4Experts(config)
    generator = torch.Generator().manual_seed(width)
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator).mul_(parameter.shape[-1] ** -0.5)
    return module.to(dtype)


def inputs(tokens: int, dtype: torch.dtype, used: int = EXPERTS) -> list[torch.Tensor]:
    """Hidden states, indices among the first `used` experts, weights."""
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.randn(tokens, used, generator=generator).softmax(dim=-1)
    weights, index = scores.topk(TOP_K)
    return [torch.randn(tokens, HIDDEN, generator=generator).to(dtype), index, weights.to(dtype)]


def outcome(function: Any, module: Small4Experts, given: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Output, and gradients of hidden states, weights and parameters, computed in `dtype`."""
    module.zero_grad()
    hidden, weights = (x.detach().to(dtype).requires_grad_() for x in (given[0], given[2]))
    output = function(module, hidden, given[1], weights)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    return [output.detach(), hidden.grad, weights.grad, *(p.grad for p in module.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_and_gradients_round_no_worse_than_one_expert_after_the_other(dtype: torch.dtype, tokens: int) -> None:
    module, given = experts(dtype), inputs(tokens, dtype, used=EXPERTS - 2)
    exact = outcome(EAGER, experts(dtype).double(), given, torch.float64)
    ours, theirs = outcome(grouped_experts, module, given, dtype), outcome(EAGER, experts(dtype), given, dtype)
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == dtype
        error, usual = ((x.double() - right).norm() / right.norm() for x in (mine, other))
        assert error <= max(1.5 * usual, TOLERANCE[dtype] / 4)
        assert error <= TOLERANCE[dtype]
    assert all(not grad[EXPERTS - 2 :].any() for grad in ours[3:]), "experts without tokens have no gradient"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_tokens(dtype: torch.dtype) -> None:
    assert grouped_experts(experts(dtype), *inputs(0, dtype)).shape == (0, HIDDEN)


def test_one_expert_takes_all() -> None:
    module, (hidden, _, weights) = experts(), inputs(9, torch.float32)
    index = torch.tensor([[5, 0, 6]]).expand(9, 3)
    torch.testing.assert_close(grouped_experts(module, hidden, index, weights), EAGER(module, hidden, index, weights))


def test_experts_of_another_rank_count_nothing() -> None:
    module, (hidden, index, weights) = experts(), inputs(20, torch.float32)
    away = index >= 5
    index, weights = index.masked_fill(away, EXPERTS), weights.masked_fill(away, 0.0)
    module._is_expert_parallel = True
    hidden.requires_grad_()
    output = grouped_experts(module, hidden, index, weights)
    output.sum().backward()
    torch.testing.assert_close(output, EAGER(module, hidden, index, weights))
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("elsewhere", [(), (1,), (0, 1, 2)])
def test_one_token_takes_its_experts_one_by_one(
    dtype: torch.dtype, elsewhere: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, "LARGE", 0)
    monkeypatch.setattr(cpu_matmul, "_slow", lambda dtype: dtype.itemsize < 4)
    monkeypatch.setattr(cpu_matmul.GroupedLinear, "apply", None)  # not called
    module, (hidden, index, weights) = experts(dtype), inputs(1, dtype)
    kept = [slot for slot in range(TOP_K) if slot not in elsewhere]
    exact = EAGER(module.double(), hidden.double(), index[:, kept], weights[:, kept].double())
    index[0, list(elsewhere)] = EXPERTS
    with torch.no_grad():
        ours = grouped_experts(module.to(dtype), hidden, index, weights)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=TOLERANCE[dtype])


def test_frozen_weights_get_no_gradient() -> None:
    module, (hidden, index, weights) = experts(torch.bfloat16).requires_grad_(False), inputs(20, torch.bfloat16)
    hidden.requires_grad_()
    module(hidden, index, weights).sum().backward()
    assert hidden.grad is not None
    assert module.gate_up_proj.grad is None


def test_default_is_ours_and_the_switch_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    module, given = experts(), inputs(7, torch.float32)
    expected = EAGER(module, *given)
    calls: list[int] = []
    forward = cpu_matmul.GroupedLinear.apply
    monkeypatch.setattr(cpu_matmul.GroupedLinear, "apply", lambda *args: calls.append(1) or forward(*args))
    for name, count in (("grouped_mm", 2), ("eager", 0), ("batched_mm", 0)):
        calls.clear()
        module.config._experts_implementation = name
        torch.testing.assert_close(module(*given), expected)
        assert len(calls) == count, name
    ALL_EXPERTS_FUNCTIONS.register("doubled", lambda self, *args: 2 * EAGER(self, *args))
    try:
        module.config._experts_implementation = "doubled"
        torch.testing.assert_close(module(*given), 2 * expected)
    finally:
        ALL_EXPERTS_FUNCTIONS._global_mapping.pop("doubled")


def test_little_work_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, "ENOUGH", 2**23)
    expected = [EAGER(experts(width=width), *inputs(7, torch.float32)) for width in (24, 27)]
    torch.testing.assert_close(experts(width=27)(*inputs(7, torch.float32)), expected[1])  # whose kernel cannot do this
    monkeypatch.setattr(cpu_matmul.GroupedLinear, "apply", None)
    torch.testing.assert_close(experts(width=24)(*inputs(7, torch.float32)), expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_as_one_graph(dtype: torch.dtype) -> None:
    module, given = experts(dtype, width=24), inputs(6, dtype)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = EAGER(module, *given)
        assert (compiled(*given) - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def test_lora_on_experts() -> None:
    peft = pytest.importorskip("peft")
    module, given = experts(width=24), inputs(12, torch.float32)
    holder = torch.nn.ModuleDict({"experts": module})
    config = peft.LoraConfig(
        r=4, target_parameters=["experts.gate_up_proj", "experts.down_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(holder, config)
    found = []
    for name in ("grouped_mm", "eager"):
        module.config._experts_implementation = name
        model.zero_grad()
        output = model.base_model.model["experts"](*given)
        output.square().sum().backward()
        found.append([output.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(found[0]) == 5
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tokens", [1, 3, 70])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linears_equal_torch(dtype: torch.dtype, bias: bool, tokens: int) -> None:
    module = torch.nn.Linear(48, 90, bias=bias).to(dtype)
    hidden = torch.randn(2, tokens, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for function, layer in ((linear, module), (lambda m, x: m(x), torch.nn.Linear(48, 90, bias=bias).double())):
        layer.load_state_dict(module.state_dict())
        given = hidden.to(layer.weight.dtype).detach().requires_grad_()
        output = function(layer, given)
        output.square().sum().backward()
        found.append([output.detach(), given.grad, *(p.grad for p in layer.parameters())])
    for mine, right in zip(*found, strict=True):
        assert (mine.double() - right).norm() <= TOLERANCE[dtype] * right.norm()


def test_wrapped_linears_are_called() -> None:
    module = torch.nn.Linear(48, 90).bfloat16()
    hidden = torch.randn(5, 48).bfloat16()
    module.register_forward_hook(lambda module, args, output: output * 0)
    assert not linear(module, hidden).any()
