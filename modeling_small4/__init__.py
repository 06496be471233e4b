"""Mistral Small 4 for transformers. Importing this package registers its classes with every Auto class; it does no other work."""

from .configuration_small4 import Small4Config, Small4TextConfig, Small4VisionConfig
from .modeling_small4 import (
    Small4ForCausalLM,
    Small4ForSequenceClassification,
    Small4ForTokenClassification,
    Small4Model,
    Small4TextModel,
    Small4VisionModel,
)
from .registration import demo_checkpoint, register_auto_classes

register_auto_classes()

__all__ = [
    "Small4Config",
    "Small4ForCausalLM",
    "Small4ForSequenceClassification",
    "Small4ForTokenClassification",
    "Small4Model",
    "Small4TextConfig",
    "Small4TextModel",
    "Small4VisionConfig",
    "Small4VisionModel",
    "demo_checkpoint",
]
