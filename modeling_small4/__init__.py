"""Mistral Small 4 for transformers. Importing this package registers its classes with every Auto class; it does no
other work.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .commands.terminal import quiet_imports

with quiet_imports():
    from .cache import LatentCache
    from .configuration_small4 import Small4Config, Small4TextConfig, Small4VisionConfig
    from .experts_offloaded import save_expert_profile
    from .grammar import Grammar
    from .image_processing_small4 import Small4ImageProcessor
    from .image_sources import ImageAccess
    from .modeling_small4 import (
        Small4ForCausalLM,
        Small4ForSequenceClassification,
        Small4ForTokenClassification,
        Small4Model,
        Small4TextModel,
        Small4VisionModel,
    )
    from .processing_small4 import Small4Processor
    from .registration import demo_checkpoint, demo_draft, register_auto_classes
    from .streaming import Small4Streamer
    from .tokenization_small4 import Small4Tokenizer
    from .training.collator import Small4DataCollator
    from .training.lora import lora_targets

if TYPE_CHECKING:
    from .training.evaluation import AnswerCallback
    from .training.expert_load import ExpertLoadCallback
    from .training.shared_lora import share_expert_ranks
    from .training.stored_lora import stored_lora

_ON_DEMAND = {
    "AnswerCallback": "evaluation",
    "ExpertLoadCallback": "expert_load",
    "share_expert_ranks": "shared_lora",
    "stored_lora": "stored_lora",
}

register_auto_classes()


def __getattr__(name: str) -> Any:
    """What only training needs, on demand: it imports transformers' Trainer, PEFT and other libraries."""
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.training.{_ON_DEMAND[name]}"), name)


__all__ = [
    "AnswerCallback",
    "ExpertLoadCallback",
    "Grammar",
    "ImageAccess",
    "LatentCache",
    "Small4Config",
    "Small4DataCollator",
    "Small4ForCausalLM",
    "Small4ForSequenceClassification",
    "Small4ForTokenClassification",
    "Small4ImageProcessor",
    "Small4Model",
    "Small4Processor",
    "Small4Streamer",
    "Small4TextConfig",
    "Small4TextModel",
    "Small4Tokenizer",
    "Small4VisionConfig",
    "Small4VisionModel",
    "demo_checkpoint",
    "demo_draft",
    "lora_targets",
    "save_expert_profile",
    "share_expert_ranks",
    "stored_lora",
]
