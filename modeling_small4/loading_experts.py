"""After loading: chooses the implementation of experts that fits how a quantizer holds them. Knows no kernel."""

import torch
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.utils import logging

logger = logging.get_logger(__name__)


def choose_experts_implementation(model: PreTrainedModel, quantizer: HfQuantizer | None) -> None:
    """After loading with a quantizer: choose the implementation that its experts work with, or say that experts were
    left out.
    """
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", None)
    experts = [p for name, p in model.named_parameters() if name.endswith("mlp.experts.gate_up_proj")]
    if method == "bitsandbytes" and experts:
        logger.warning(
            "bitsandbytes quantizes linear layers only and leaves the routed experts, nearly all of the weights, in "
            f"{str(experts[0].dtype).removeprefix('torch.')}; to hold them in 8 bits, load with from_pretrained(..., "
            '**weight_only("int8")).'
        )
    if method != "torchao" or not experts:
        return
    if type(experts[0]) is torch.nn.Parameter:
        logger.warning(
            "This torchao configuration leaves the routed experts, nearly all of the weights, unquantized; "
            'for int8 use from_pretrained(..., **weight_only("int8")).'
        )
    elif model.config.get_text_config()._experts_implementation != "eager":
        logger.warning("torchao's experts run one after the other (experts_implementation='eager').")
        model.set_experts_implementation("eager")
