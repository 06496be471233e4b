"""The files of a processor: loading it from a folder or the Hub, also where a trainer saved only some, and saving it.

Must not know how a processor is called.
"""

import os
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedConfig
from transformers.processing_utils import ProcessorMixin

from .files_reading import check_json, check_text, folder_of, naming, shown
from .files_saving import refuse_links
from .image_processing_small4 import Small4ImageProcessor
from .tokenization_small4 import Small4Tokenizer

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_NOT_FOR_TOKENIZER = ("image_processor", "tokenizer", "chat_template", "config", "trust_remote_code", "_from_auto")


class ProcessorFilesMixin(ProcessorMixin):
    """`from_pretrained` and `save_pretrained` of `Small4Processor`."""

    image_processor: Small4ImageProcessor | None
    tokenizer: Small4Tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Self:
        """As transformers'. Raises ValueError or OSError that names the file for one that is damaged."""
        folder = folder_of(pretrained_model_name_or_path, kwargs.get("subfolder"))
        if folder is not None:
            check_json(folder, "processor_config.json", "preprocessor_config.json")
            check_text(folder / "chat_template.jinja")
        with naming(pretrained_model_name_or_path if folder is None else folder / "processor_config.json"):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        processor_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Always our own classes, whatever else is installed."""
        folder, image_arguments = pretrained_model_name_or_path, Small4ImageProcessor.valid_kwargs.__annotations__
        tokenizer, vision = kwargs.get("tokenizer"), kwargs.get("image_processor")
        if tokenizer is None:
            rest = {key: kwargs[key] for key in kwargs.keys() - set(_NOT_FOR_TOKENIZER) - image_arguments.keys()}
            tokenizer = _load_tokenizer(folder, rest)
        settings = None
        if vision is None:
            known = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
            settings = _image_settings(folder, processor_dict or {}, known)
        if settings is not None:
            own = {key: kwargs[key] for key in image_arguments.keys() & kwargs.keys()}
            vision = Small4ImageProcessor.from_dict(settings, **own)
        return [vision, tokenizer]

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """As in transformers; a processor without vision saves no image processor, one without code no `auto_map`."""
        refuse_links(save_directory)
        if (
            self._auto_class is None
        ):  # the entry names files, which transformers copies only for code that came with a folder
            self.tokenizer.init_kwargs.pop("auto_map", None)
            if self.image_processor is not None:
                self.image_processor.__dict__.pop("auto_map", None)
        if self.image_processor is None:
            self.get_attributes = lambda: ["tokenizer"]  # type: ignore[method-assign]
        try:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            self.__dict__.pop("get_attributes", None)


def _load_tokenizer(folder: str | os.PathLike[str], kwargs: dict[str, Any]) -> Small4Tokenizer:
    try:
        return Small4Tokenizer.from_pretrained(folder, **kwargs)
    except (OSError, TypeError, ValueError) as error:
        if (Path(folder) / "tokenizer.json").is_file():
            raise
        reason = str(error).splitlines()[0][:200]
        raise OSError(
            f"{folder} has no tokenizer.json, so no processor can be loaded from it ({reason}). Save the processor "
            "there "
            "(processor.save_pretrained), or load it from the checkpoint from which the model was trained."
        ) from None


def _image_settings(
    folder: str | os.PathLike[str], processor: dict[str, Any], known: dict[str, Any]
) -> dict[str, Any] | None:
    """Settings of the image processor: from `processor_config.json` or `preprocessor_config.json`; where a trainer
    saved neither, from the model's configuration. None if the model has no vision, or nothing says that it has."""
    above = {"spatial_merge_size": processor["spatial_merge_size"]} if "spatial_merge_size" in processor else {}
    if processor.get("image_processor") is not None:
        if not isinstance(processor["image_processor"], dict):
            raise ValueError(f"image_processor must be an object, but is {shown(processor['image_processor'])}")
        return above | processor["image_processor"]
    try:
        return above | Small4ImageProcessor.get_image_processor_dict(folder, **known)[0]
    except OSError:
        pass
    if processor.get("processor_class") == "Small4Processor":
        return None
    try:
        config, _ = PreTrainedConfig.get_config_dict(folder, **known)
    except OSError:
        return None
    vision = config.get("vision_config")
    if not vision:
        return None
    sizes = {"patch_size": vision.get("patch_size"), "max_image_size": vision.get("image_size")}
    sizes |= {"spatial_merge_size": config.get("spatial_merge_size")} | above
    return {key: value for key, value in sizes.items() if value is not None}
