"""Adapters on weights that torchao holds: what PEFT 0.21 and torchao 0.18 need to train and merge them.

PEFT quantizes a merged layer with the configuration of the whole model, which torchao refuses when that one names
weights (`FqnToConfig`); it leaves DoRA's magnitudes out without a word; and it adds to fused experts in ways that
torchao's int8 tensors do not know. Must not know: names of layers, how adapters are made.
"""

from functools import cache
from typing import Any
from weakref import ref

import torch
from torch import nn
from transformers import PreTrainedModel, TorchAoConfig
from transformers.quantizers import HfQuantizer

_PARTS = ("qdata", "scale", "zero_point")


def let_adapters_merge(model: PreTrainedModel, quantizer: HfQuantizer | None) -> None:
    """After loading with torchao: see to it that PEFT can merge into this model's weights, or says why not."""
    config = getattr(quantizer, "quantization_config", None)
    if isinstance(config, TorchAoConfig):
        config.__class__ = _LayerByLayer
        config.__dict__["_model"] = ref(model)
        _teach_int8_tensors()


class _LayerByLayer(TorchAoConfig):
    """The configuration that a model was loaded with, which PEFT asks how to quantize one merged layer."""

    def get_apply_tensor_subclass(self) -> Any:
        """How one linear layer is quantized.

        Raises:
            ValueError: The layer that is being merged has a DoRA adapter.
        """
        named = getattr(self.quant_type, "fqn_to_config", None)
        how = self.quant_type if named is None else next(each for each in named.values() if each is not None)
        model = self.__dict__.get("_model", lambda: None)()
        if model is not None:
            _refuse_dora(model, how)
        return how

    def to_dict(self) -> dict[str, Any]:
        """As transformers', without the model."""
        return {name: value for name, value in super().to_dict().items() if name != "_model"}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_model"}


def _refuse_dora(model: PreTrainedModel, how: object) -> None:
    """PEFT has expanded a weight and added an adapter to it when it asks; of a DoRA adapter it would be wrong, so the
    weight is put back.
    """
    from torchao import quantize_

    for name, layer in model.named_modules():
        if not getattr(layer, "lora_magnitude_vector", None) or _held(layer.base_layer.weight):
            continue
        adapter = next(each for each in layer.active_adapters if each in layer.lora_A)
        weight, delta = layer.base_layer.weight.detach(), layer.get_delta_weight(adapter).detach()
        layer.base_layer.weight = nn.Parameter((weight - delta).to(weight.dtype), requires_grad=False)
        quantize_(layer.base_layer, how)
        raise ValueError(
            f"{name} has a DoRA adapter, which PEFT cannot merge into weights that torchao holds: it would leave out "
            "the magnitudes. Load the base model in bfloat16, then peft.PeftModel.from_pretrained(model, ADAPTER)"
            ".merge_and_unload()."
        )


@cache
def _teach_int8_tensors() -> None:
    """Give torchao's int8 tensors the operations of PEFT's adapters on fused weights, which they lack."""
    from torchao.quantization import Int8Tensor

    aten = torch.ops.aten

    @Int8Tensor.implements([aten.baddbmm.default, aten.abs.default, aten.eq.Tensor])  # the last two: isfinite
    def expanded(function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        return function(*(_expanded(each) for each in args), **kwargs)

    @Int8Tensor.implements([aten.add_.Tensor, aten.sub_.Tensor])
    def changed(function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        tensor, other = args
        return _requantize(tensor, function(tensor.dequantize(torch.float32), _expanded(other), **kwargs))

    set_data = torch.Tensor.data.__set__  # type: ignore[attr-defined]

    @Int8Tensor.implements_torch_function(set_data)
    def replaced(function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`tensor.data = other`, which for such tensors changes nothing."""
        if all(_held(each) for each in args):
            for name in _PARTS:
                setattr(args[0], name, getattr(args[1], name))
        with torch._C.DisableTorchFunctionSubclass():
            function(*args)


def _requantize(tensor: Any, whole: torch.Tensor) -> Any:
    """Other values for an int8 tensor, in its own granularity."""
    from torchao.quantization import PerRow, PerTensor

    granularity = PerRow() if tensor.scale.numel() > 1 else PerTensor()
    new = type(tensor).from_hp(whole, granularity, reduce_range=tensor.reduce_range)
    for name in _PARTS:
        if getattr(tensor, name) is not None:
            getattr(tensor, name).copy_(getattr(new, name))
    return tensor


def _held(weight: object) -> bool:
    from torchao.utils import TorchAOBaseTensor

    return isinstance(weight, TorchAOBaseTensor)


def _expanded(value: Any) -> Any:
    return value.dequantize() if _held(value) else value
