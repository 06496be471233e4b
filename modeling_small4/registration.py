"""Makes transformers' Auto classes, pipelines and server know Small 4, and finds the demo checkpoint. Nothing of the
model itself.
"""

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoProcessor,
    AutoTokenizer,
    Mistral3Config,
    Mistral4Config,
    PreTrainedConfig,
)
from transformers.models.auto import modeling_auto
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_small4 import Small4Config, Small4TextConfig, Small4VisionConfig
from .drafts_eagle import Small4EagleConfig, Small4EagleDraft
from .image_processing_small4 import Small4ImageProcessor
from .modeling_small4 import (
    Small4ForCausalLM,
    Small4ForSequenceClassification,
    Small4ForTokenClassification,
    Small4Model,
    Small4TextModel,
    Small4VisionModel,
)
from .processing_small4 import Small4Processor
from .tokenization_small4 import Small4Tokenizer


class PublishedForCausalLM(Small4ForCausalLM):
    """How `AutoModelForCausalLM` opens a folder in transformers' own layout, whose configurations it knows no class
    for: as ours.
    """

    config_class = Mistral3Config

    @classmethod
    def from_pretrained(cls, *args: Any, config: PreTrainedConfig = None, **kwargs: Any) -> Any:
        """As `Small4ForCausalLM.from_pretrained`; the result is of that class."""
        given = {} if config is None else {"config": _ours(config)}
        return Small4ForCausalLM.from_pretrained(*args, **given, **kwargs)

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        return Small4ForCausalLM._from_config(_ours(config), **kwargs)


class PublishedTextForCausalLM(PublishedForCausalLM):
    """The same for a model without vision."""

    config_class = Mistral4Config


def _ours(config: PreTrainedConfig) -> Small4Config:
    """transformers' configuration as one of ours. Raises ValueError if its text model is another."""
    text = getattr(config, "text_config", config)
    if not isinstance(text, Mistral4Config):
        raise ValueError(
            f"{config._name_or_path or 'This checkpoint'}: a {config.model_type!r} around {text.model_type!r} is no "
            "Mistral Small 4; "
            "open it with AutoModelForImageTextToText."
        )
    out = Small4Config.from_dict(config.to_dict())
    out._name_or_path = config._name_or_path
    return out


def register_auto_classes() -> None:
    """Register every class under the Auto classes that fit it. Calling it again changes nothing."""
    for config in (Small4Config, Small4TextConfig, Small4VisionConfig, Small4EagleConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for model in (Small4Model, Small4TextModel, Small4VisionModel, Small4EagleDraft):
        AutoModel.register(model.config_class, model, exist_ok=True)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto.register(Small4Config, Small4ForCausalLM, exist_ok=True)
    for published in (PublishedForCausalLM, PublishedTextForCausalLM):
        AutoModelForCausalLM.register(published.config_class, published, exist_ok=True)
    AutoModelForSequenceClassification.register(Small4Config, Small4ForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(Small4Config, Small4ForTokenClassification, exist_ok=True)
    AutoTokenizer.register(Small4Config, tokenizer_class=Small4Tokenizer, exist_ok=True)
    AutoImageProcessor.register(Small4Config, image_processor_classes={"pil": Small4ImageProcessor}, exist_ok=True)
    AutoProcessor.register(Small4Config, Small4Processor, exist_ok=True)
    # The server and some trainers look classes up by name in these tables, which `register` leaves alone.
    names = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )
    for table in names:
        table.setdefault(Small4Config.model_type, Small4ForCausalLM.__name__)
    # Classes by name, as transformers lists its own: they are imported by the first pipeline that is made.
    for task, own in (("text-generation", "TextGeneration"), ("image-text-to-text", "ImageTextToText")):
        entry = PIPELINE_REGISTRY.supported_tasks[task]
        if isinstance(entry["impl"], str):
            entry["impl"] = f"{__package__}.pipelines.Small4{own}Pipeline"


def demo_checkpoint() -> Path:
    """Folder of the demo checkpoint: a small Small 4, trained for real, that ships with the package and lies in a
    clone.

    Raises:
        FileNotFoundError: The installation carries none; reinstall, or pass a checkpoint of your own.
    """
    return _shipped("demo", "checkpoint")


def demo_draft() -> Path:
    """Folder of the demo checkpoint's EAGLE draft, for `generate(draft=...)`; beside the demo checkpoint.

    Raises:
        FileNotFoundError: The installation carries none; reinstall.
    """
    return _shipped("demo_draft", "draft")


def _shipped(name: str, what: str) -> Path:
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / "model_card" / name):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"No demo {what} beside {package}; reinstall modeling-small4, or name a checkpoint folder yourself."
    )
