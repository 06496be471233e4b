"""Matrix products on a CPU: tokens sorted by expert so that each chosen expert's weights are read once, and half
precision at float32's speed.

A CPU without instructions for bfloat16 or float16 multiplies them several times slower than float32. There a block of
weights is turned to float32 while it is in the cache, and multiplied so; sums are float32 either way. Knows nothing of
routers or layers.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, ExpertsInterface
from transformers.utils import is_torchdynamo_compiling

ENOUGH = 2**23  # multiplications per expert from which the loop over experts costs nothing
LARGE = 2**20  # numbers in an expert's matrix from which reading it takes much longer than a call
ROWS = 512  # weight rows multiplied at once: 8 MB of float32 at the release's width, so that they stay in the cache
FEW = 2  # so many tokens are faster one by one in half precision: reading the weights is what takes the time
MANY = 4096  # more tokens are multiplied in several parts, whose float32 forms then take little memory
LEAST = 4  # so many columns take BLAS less time than two or three


class Small4ExpertsInterface(ExpertsInterface):
    """transformers' implementations of experts under their names, with `grouped_mm`, the default, done by
    `grouped_experts` on a CPU.
    """

    def get_interface(self, experts_implementation: str, default: Callable) -> Callable:
        chosen = ALL_EXPERTS_FUNCTIONS.get_interface(experts_implementation, default)
        return grouped_experts if experts_implementation == "grouped_mm" and not is_torchdynamo_compiling() else chosen


def grouped_experts(
    experts: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """All routed experts. Arguments as in `Small4Experts.forward`; where our kernel gains nothing, by transformers'."""
    weights = experts.gate_up_proj, experts.down_proj
    if len(top_k_index) == 1 and _one_by_one(weights):
        return _one_token(experts, hidden_states[0], top_k_index[0].tolist(), top_k_weights[0])
    if not _ours_pays(weights, top_k_index.numel() / experts.num_experts):
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](experts, hidden_states, top_k_index, top_k_weights)
    top_k, flat = top_k_index.shape[-1], top_k_index.flatten()
    order = flat.argsort()
    counts = torch.bincount(flat, minlength=experts.num_experts)[: experts.num_experts].tolist()
    inputs = hidden_states[order // top_k].to(weights[0].dtype)
    inner = experts._apply_gate(GroupedLinear.apply(inputs, weights[0], counts))
    outputs = GroupedLinear.apply(inner, weights[1], counts) * top_k_weights.flatten()[order, None]
    return outputs[order.argsort()].unflatten(0, (-1, top_k)).sum(dim=1).to(hidden_states.dtype)


def _one_token(experts: Any, hidden: torch.Tensor, chosen: list[int], top_k_weights: torch.Tensor) -> torch.Tensor:
    """Products of matrices and vectors, of the chosen experts only: reading their weights is all that takes time."""
    here = [slot for slot, expert in enumerate(chosen) if expert < experts.num_experts]  # others are another rank's
    if not here:
        return torch.zeros_like(hidden)[None]
    inputs = hidden.to(experts.gate_up_proj.dtype)
    inner = experts._apply_gate(torch.stack([experts.gate_up_proj[chosen[slot]].mv(inputs) for slot in here]))
    outputs = torch.stack([experts.down_proj[chosen[slot]].mv(x) for slot, x in zip(here, inner, strict=True)])
    return (outputs * top_k_weights[here, None]).sum(dim=0, keepdim=True).to(hidden.dtype)


def one_experts_product(
    weights: tuple[torch.Tensor, torch.Tensor], tokens: int, mean: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """How `grouped_experts` multiplies one expert's rows `[n, in]` with one of its matrices `[out, in]`, to the bit.

    Args:
        weights: Both matrices of any one expert.
        tokens: Of the forward pass.
        mean: Tokens for each expert of the layer, on average.
    """
    stacked = weights[0][None], weights[1][None]
    if tokens == 1 and _one_by_one(stacked):
        return lambda rows, weight: weight.mv(rows[0])[None]
    if _ours_pays(stacked, mean):
        return lambda rows, weight: GroupedLinear.apply(rows, weight[None], [len(rows)])
    return lambda rows, weight: rows @ weight.T


def _plain(weights: tuple[torch.Tensor, ...]) -> bool:
    return all(w.device.type == "cpu" and type(w) in (torch.Tensor, nn.Parameter) for w in weights)


def _one_by_one(weights: tuple[torch.Tensor, ...]) -> bool:
    """Whether experts are so large that calling one after the other costs nothing, and `mv` is the fastest way: it has
    no use for instructions for half precision."""
    large = _plain(weights) and weights[0][0].numel() >= LARGE
    return large and not torch.is_grad_enabled() and not _native_half(weights[0].dtype)


def _ours_pays(weights: tuple[torch.Tensor, ...], tokens: float) -> bool:
    """Whether our kernel is the faster one for so many tokens per expert, or the only one."""
    if not _plain(weights):
        return False
    dtype = weights[0].dtype
    if dtype == torch.float64 or any(w.shape[-1] * w.element_size() % 16 for w in weights):
        return True  # transformers' kernel has no float64, and wants rows of whole 16 bytes
    enough = tokens * weights[0][0].numel() >= ENOUGH
    return enough and not _native_half(dtype) and (_slow(dtype) or not torch.is_grad_enabled())


def _native_half(dtype: torch.dtype) -> bool:
    """True when this CPU has instructions for such numbers: then transformers' kernel is as fast as ours."""
    return dtype.itemsize < 4 and not _slow(dtype)


class GroupedLinear(torch.autograd.Function):
    """`[tokens, in]`, sorted by expert, times `[experts, out, in]`: `[tokens, out]`. Tokens beyond the sum of `counts`
    give zeros.
    """

    @staticmethod
    def forward(inputs: torch.Tensor, weight: torch.Tensor, counts: list[int]) -> torch.Tensor:
        outputs = inputs.new_empty(inputs.shape[0], weight.shape[1])
        for expert, rows in _groups(counts):
            _multiply(inputs[rows], weight[expert], outputs[rows])
        outputs[sum(counts) :] = 0
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, list[int]], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.counts = inputs[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        grad_inputs = torch.zeros_like(inputs) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for expert, rows in _groups(ctx.counts):
            if grad_inputs is not None:
                _multiply_transposed(grad[rows], weight[expert], grad_inputs[rows])
            if grad_weight is not None:
                _outer(grad[rows], inputs[rows], grad_weight[expert])
        return grad_inputs, grad_weight, None


def linear(module: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """`module(inputs)`; for a plain half-precision linear on a CPU that is slow at it, through float32.

    A function and not a subclass of `nn.Linear`: transformers loads FP8, bitsandbytes and GGUF weights by replacing
    modules whose type is `nn.Linear` itself, and would leave every other one out.

    Args:
        module: `nn.Linear`, or whatever an adapter, quantizer or sharding put in its place.
        inputs: `[..., in]`.
    """
    if inputs.device.type != "cpu" or inputs.numel() <= FEW * inputs.shape[-1] or is_torchdynamo_compiling():
        return module(inputs)
    if not is_plain_linear(module) or inputs.dtype != module.weight.dtype or not _slow(inputs.dtype):
        return module(inputs)
    outputs = GroupedLinear.apply(inputs.flatten(0, -2), module.weight[None], [inputs[..., 0].numel()])
    outputs = outputs.unflatten(0, inputs.shape[:-1])
    return outputs if module.bias is None else outputs + module.bias


def is_plain_linear(module: nn.Module) -> bool:
    """True when `module.weight` is all there is to it: no adapter, quantizer, shard, offload hook or other wrapper in
    between.
    """
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.is_floating_point()
        and not module.weight.is_meta
        and is_unwrapped(module)
    )


def is_unwrapped(module: nn.Module) -> bool:
    """True when calling a module does what its class says.

    accelerate's hook on a layer whose weights stay on its device only moves inputs there, so it does not count.
    """
    wrapped = "forward" in module.__dict__ and getattr(getattr(module, "_hf_hook", None), "offload", True)
    return not (wrapped or module._forward_hooks or module._forward_pre_hooks)


def _groups(counts: list[int]) -> list[tuple[int, slice]]:
    """Experts that have tokens, with the rows of those."""
    groups, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            groups.append((expert, slice(start, start + count)))
        start += count
    return groups


def _multiply(inputs: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """`out = inputs @ weight.T`, `[tokens, in]` and `[out, in]`. Weights stand on the left: for few tokens BLAS is up
    to twice as fast so.
    """
    tokens, slow = inputs.shape[0], _slow(weight.dtype)
    if tokens > MANY:
        for some, results in zip(inputs.split(MANY), out.split(MANY), strict=True):
            _multiply(some, weight, results)
        return
    if tokens <= (FEW if slow else 1) or _native_half(weight.dtype):
        torch.mm(inputs, weight.T, out=out)
        return
    padded = nn.functional.pad(inputs, (0, 0, 0, max(0, LEAST - tokens)))
    columns = padded.float().T if slow else padded.T
    for block, results in zip(_blocks(weight, slow), out.split(ROWS, dim=1), strict=True):
        results.copy_((block @ columns).T[:tokens])


def _blocks(weight: torch.Tensor, slow: bool) -> Iterator[torch.Tensor]:
    """`ROWS` rows at a time, turned to float32 if `slow`, each of them valid until the next one is asked for."""
    scratch = torch.empty(min(ROWS, weight.shape[0]), weight.shape[1]) if slow else None
    for block in weight.split(ROWS):
        yield block if scratch is None else scratch[: len(block)].copy_(block)


def _multiply_transposed(grad: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """`out = grad @ weight`."""
    if not _slow(weight.dtype):
        torch.mm(grad, weight, out=out)
        return
    total = torch.zeros(out.shape)
    for block, part in zip(_blocks(weight, True), grad.split(ROWS, dim=1), strict=True):
        total.addmm_(part.float(), block)
    out.copy_(total)


def _outer(grad: torch.Tensor, inputs: torch.Tensor, out: torch.Tensor) -> None:
    """`out = grad.T @ inputs`."""
    if _slow(out.dtype):
        out.copy_(grad.float().T @ inputs.float())
    else:
        torch.mm(grad.T, inputs, out=out)


@cache
def _slow(dtype: torch.dtype) -> bool:
    """True when this CPU multiplies such matrices slower than in float32."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in supported and not supported[dtype]()
