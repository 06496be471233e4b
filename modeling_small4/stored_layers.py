"""Layers that hold their weights as stored, and compute with a bounded piece expanded at a time.

Parameters have the names and shapes of the checkpoint's tensors (written down in `small4_conversion.formats`), so
saving writes the same bytes. They are never trained and never cast; gradients of inputs flow. Must not know: files,
configurations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .cpu_matmul import is_unwrapped
from .stored_kernels import product, product_transposed, products
from .stored_weights import Fp8Weight, Int4Weight, Nvfp4Weight, StoredWeight

# What stands behind the stem of a weight's name: codes, then scales. Scales of inputs are kept for engines that round
# their inputs.
CODES = ("", "_packed")
SCALES = ("_scale_inv", "_scale", "_global_scale", "_zero_point")
INPUT_SCALES = ("activation_scale", "input_global_scale")


@dataclass(frozen=True)
class Part:
    """A stored tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def stored_weight(parts: Mapping[str, torch.Tensor], half: int = 0, halves: int = 1) -> StoredWeight:
    """One matrix out of the tensors of a linear layer, or of one expert, without a copy.

    Args:
        parts: By what stands behind the stem of their names, see `CODES` and `SCALES`.
        half, halves: Which of the matrices that stand one below the other; gate rows and up rows are 0 and 1 of 2.
    """

    def mine(tensor: torch.Tensor) -> torch.Tensor:
        count = tensor.shape[0] // halves
        return tensor if halves == 1 or tensor.shape[0] == 1 else tensor[half * count : (half + 1) * count]

    if "" in parts:
        scale = parts["_scale_inv"]
        return Fp8Weight(mine(parts[""]), mine(scale if scale.ndim == 2 else scale.reshape(1, 1)))
    codes, scale = mine(parts["_packed"]), mine(parts["_scale"])
    if codes.dtype == torch.uint8:
        return Nvfp4Weight(codes, scale, parts["_global_scale"].reshape(-1)[half])
    zeros = parts.get("_zero_point")
    return Int4Weight(codes, scale, None if zeros is None else mine(zeros))


def expanded(parts: Mapping[str, torch.Tensor], halves: int, dtype: torch.dtype) -> torch.Tensor:
    """All numbers of a linear weight `[out, in]`, or of fused experts `[experts, halves * rows, in]`, in `dtype`.

    parts: As of `stored_weight`, those of all experts together.
    """
    codes = parts["" if "" in parts else "_packed"]
    stacks = (
        [{end: part[expert] for end, part in parts.items()} for expert in range(len(codes))]
        if codes.ndim == 3
        else [parts]
    )
    weights = [[stored_weight(stack, half, halves) for half in range(halves)] for stack in stacks]
    first = weights[0][0]
    out = torch.empty(len(weights), halves, first.rows, first.columns, dtype=dtype, device=codes.device)
    for index, stack in enumerate(weights):
        for half, weight in enumerate(stack):
            for rows, piece in weight.pieces():
                out[index, half, rows] = piece.expand()
    return out.flatten(1, 2) if codes.ndim == 3 else out[0, 0]


class StoredProduct(torch.autograd.Function):
    """`inputs @ weight.T`, float `[tokens, columns]` to `[tokens, rows]`; only inputs have a gradient."""

    @staticmethod
    def forward(inputs: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
        output = product(weight, inputs)
        return output.clone() if output._is_view() else output  # autograd lets callers change no view that is made here

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, StoredWeight], output: torch.Tensor) -> None:
        ctx.weight = inputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return product_transposed(ctx.weight, grad), None


@torch.compiler.disable
def multiply(weight: StoredWeight, inputs: torch.Tensor) -> torch.Tensor:
    """`inputs @ weight.T`, float `[..., columns]` to `[..., rows]`, with a gradient for the inputs. It breaks the graph
    of compiled code.
    """
    return StoredProduct.apply(inputs.flatten(0, -2), weight).unflatten(0, inputs.shape[:-1])


@torch.compiler.disable
def multiply_all(weights: Sequence[StoredWeight], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """`multiply` of each weight with its inputs, all at once where no gradient is asked for."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return [multiply(weight, x) for weight, x in zip(weights, inputs, strict=True)]
    return products(weights, inputs)


class StoredModule(nn.Module):
    """What both kinds of layers share: parameters that keep their dtype whatever a model is cast to."""

    _hf_quantized_needs_local_tp = True  # transformers: give this process's shard as plain tensors
    _seen_as: Mapping[str, tuple[torch.dtype, bool]] = {}  # what bytes stand for: dtype, whether it is one number `[]`

    def _add(self, parts: Mapping[str, Part]) -> None:
        for name, part in parts.items():
            empty = torch.empty(part.shape, dtype=part.dtype, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    def _parts(self, stem: str) -> dict[str, torch.Tensor]:
        """Codes and scales of the weight `stem`, by what stands behind it."""
        found = {end: self._tensor(stem + end) for end in CODES + SCALES}
        return {end: tensor for end, tensor in found.items() if tensor is not None}

    def _tensor(self, name: str) -> torch.Tensor | None:
        """A stored tensor in its own dtype and shape, without a copy; None if there is none."""
        held = self._parameters.get(name)
        if held is None or name not in self._seen_as:
            return held
        dtype, is_scalar = self._seen_as[name]
        return held.view(dtype).reshape(()) if is_scalar else held.view(dtype)

    @property
    def holds_bytes(self) -> bool:
        """See `hold_bytes`."""
        return bool(self._seen_as)

    def hold_bytes(self) -> None:
        """Let parameters be the bytes of the stored tensors, uint8 `[..., bytes of a row]`, to train in several
        processes.

        FSDP2 takes no scalars and casts floats, scales included, to the dtype it computes in; gloo sends no floats of 8
        bits. Outputs stay as they are. Tensors that are already cut over processes are left alone.
        """
        mine = {name: p for name, p in self._parameters.items() if p is not None and name != "bias"}
        if self.holds_bytes or any(hasattr(parameter, "to_local") for parameter in mine.values()):
            return
        self._seen_as = {name: (p.dtype, p.ndim == 0) for name, p in mine.items()}
        for name, parameter in mine.items():
            held = parameter.data.reshape(1) if parameter.ndim == 0 else parameter.data
            self._parameters[name] = nn.Parameter(held.view(torch.uint8), requires_grad=False)

    def hold_numbers(self) -> None:
        """Undo `hold_bytes`.

        Raises:
            ValueError: The bytes are cut over processes.
        """
        if any(hasattr(self._parameters[name], "to_local") for name in self._seen_as):
            raise ValueError(
                "The stored weights are cut over processes by FSDP; save the adapter, and merge it in one process: "
                "small4_conversion.adapters.merge_adapter."
            )
        tensors = {name: self._tensor(name) for name in self._seen_as}
        self._seen_as = {}
        for name, tensor in tensors.items():
            assert tensor is not None
            self._parameters[name] = nn.Parameter(tensor.detach(), requires_grad=False)

    def numbers(self, stem: str, dtype: torch.dtype) -> torch.Tensor:
        """The expanded weight `stem` in the shape of a plain module's parameter."""
        return expanded(self._parts(stem), 2 if stem == "gate_up_proj" else 1, dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "StoredModule":
        """As `nn.Module`'s, except that `to(dtype)`, `half()` and their like only move codes and scales."""
        stored = {id(parameter) for name, parameter in self._parameters.items() if name != "bias"}

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in stored:
                return fn(tensor)
            tried = fn(tensor.new_empty(0))
            if tried.dtype == tensor.dtype:
                return fn(tensor)
            return torch.empty_like(tensor, device=tried.device) if tensor.is_meta else tensor.to(tried.device)

        return super()._apply(moved, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; torch (2.13) cannot pickle numbers of 8 bits, so they go as bytes."""
        state = dict(self.__dict__)
        eight = {name: p for name, p in self._parameters.items() if p is not None and p.dtype == torch.float8_e4m3fn}
        state["_parameters"] = self._parameters | {name: p.data.view(torch.uint8) for name, p in eight.items()}
        return state | {"_eight_bits": list(eight)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        parameters = state["_parameters"]
        for name in state.pop("_eight_bits"):
            parameters[name] = nn.Parameter(parameters[name].view(torch.float8_e4m3fn), requires_grad=False)
        super().__setstate__(state)


class Small4StoredLinear(StoredModule):
    """A linear layer of a stored weight. Its output has the dtype of its input."""

    def __init__(
        self, in_features: int, out_features: int, parts: Mapping[str, Part], bias: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._add(parts)
        self.bias = bias
        self._expanded: tuple[Any, torch.Tensor] | None = None

    def stored(self) -> StoredWeight:
        """The weight `[out, in]`."""
        return stored_weight(self._parts("weight"))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output = multiply(self.stored(), inputs)
        return output if self.bias is None else output + self.bias

    def kept_numbers(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight's numbers `[out, in]`, kept from the first call on; for the one small matrix that is not only
        multiplied with.
        """
        weight = self.stored()
        key = (dtype, weight.codes.device, weight.codes.data_ptr(), weight.codes._version)
        if self._expanded is None or self._expanded[0] != key:
            self._expanded = (key, self.numbers("weight", dtype))
        return self._expanded[1]

    def extra_repr(self) -> str:
        """As that of `nn.Linear`, and what PEFT's error about an unknown layer should say."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{shape}, for LoRA: stored_lora"


def is_readable(module: Any) -> bool:
    """True for a stored linear whose weight can be read directly: there is no adapter, shard or offload hook."""
    return type(module) is Small4StoredLinear and is_unwrapped(module) and not module.stored().codes.is_meta
