"""What a checkpoint folder holds beside weights and configuration: tokenizer and processor files, and the model's code.

Knows file names; the contents of tokenizer files are in `tokenizer.py`.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modeling_small4
from modeling_small4.files_reading import one_line
from modeling_small4.image_processing_small4 import MEAN, STD

from .checkpoint import CheckpointError, read_json
from .source import Checkpoint
from .vocabulary import read_vocabulary

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("processor_config.json", "preprocessor_config.json", "generation_config.json"),
)
VERBATIM = ("tekken.json", "SYSTEM_PROMPT.txt")

AUTO_MAP: dict[str, Any] = {
    "AutoConfig": "configuration_small4.Small4Config",
    "AutoModel": "modeling_small4.Small4Model",
    "AutoModelForCausalLM": "modeling_small4.Small4ForCausalLM",
    "AutoModelForImageTextToText": "modeling_small4.Small4ForCausalLM",
    "AutoModelForMultimodalLM": "modeling_small4.Small4ForCausalLM",
    "AutoModelForSequenceClassification": "modeling_small4.Small4ForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_small4.Small4ForTokenClassification",
    "AutoProcessor": "processing_small4.Small4Processor",
    "AutoImageProcessor": "image_processing_small4.Small4ImageProcessor",
    "AutoTokenizer": [None, "tokenization_small4.Small4Tokenizer"],  # [slow, fast]
}
DOORS = {entry.split(".")[0] for entry in AUTO_MAP.values() if isinstance(entry, str)} | {"tokenization_small4"}


def write_tokenizer(source: Checkpoint, folder: Path, layout: str, note: Callable[[str], None]) -> None:
    """Write everything about tokenizer, chat template, processor and generation defaults for a checkpoint in `layout`.

    Made from tekken.json where there is one; a folder that already has our files keeps them as they are.

    Raises:
        CheckpointError: A raw checkpoint without tekken.json, or a tekken.json that cannot be read.
    """
    tekken = source.folder / "tekken.json"
    if tekken.exists() and layout not in ("mistral", source.layout):
        _check_vocabulary(tekken, source.config.text_config.vocab_size)
    read_vocabulary(source.folder, tekken=layout == "mistral" or source.layout != layout)  # before anything is copied
    for name in VERBATIM:
        if (source.folder / name).exists():
            shutil.copyfile(source.folder / name, folder / name)
    if layout == "mistral":
        if not tekken.exists():
            note("tokenizer: none written, SRC has no tekken.json")
        return
    if source.layout == layout or not tekken.exists():
        if source.layout == "mistral":
            raise CheckpointError(f"{tekken}: missing; the tokenizer is made from it")
        _copy_tokenizer(source.folder, folder, note)
        return
    from .tokenizer import write_processor  # imports mistral-common, which only this needs

    try:
        write_processor(tekken, folder, image_sizes(source))
    except OSError:
        raise
    except Exception as error:  # the libraries that read it raise many kinds of errors
        reason = one_line(error)
        if "os error 28" in reason:  # how the tokenizers library reports a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise CheckpointError(
            reason if str(tekken) in reason else f"{tekken}: is no Tekken tokenizer ({reason})"
        ) from None
    if layout == "transformers":
        _name_host_processor(folder, image_sizes(source))


def _check_vocabulary(tekken: Path, vocab_size: int) -> None:
    config = read_json(tekken).get("config")
    tokens = config.get("default_vocab_size") if isinstance(config, dict) else None
    if type(tokens) is int and tokens > vocab_size:
        raise CheckpointError(f"{tekken}: has {tokens} tokens, but the model's vocabulary has {vocab_size}")


def image_sizes(source: Checkpoint) -> dict[str, int] | None:
    """The sizes that the image processor of this model needs; None for a model without vision."""
    vision = source.config.vision_config
    if vision is None:
        return None
    limit = ((source.params or {}).get("vision_encoder") or {}).get("max_image_size", vision.image_size)
    return {
        "patch_size": vision.patch_size,
        "max_image_size": limit,
        "spatial_merge_size": source.config.spatial_merge_size,
    }


def _copy_tokenizer(origin: Path, folder: Path, note: Callable[[str], None]) -> None:
    found = [name for name in TOKENIZER_FILES if (origin / name).exists()]
    for name in found:
        if not name.endswith(".json") or name == "tokenizer.json":
            shutil.copyfile(origin / name, folder / name)
            continue
        content = read_json(origin / name)
        for part in (content, content.get("image_processor")):
            if isinstance(part, dict):
                part.pop("auto_map", None)  # code is carried only where it is asked for
        _write_json(folder / name, content)
    note(
        f"tokenizer: {'kept as it was' if 'tokenizer.json' in found else 'none written, SRC has neither tekken.json nor tokenizer.json'}"  # noqa: E501
    )


def _name_host_processor(folder: Path, sizes: dict[str, int] | None) -> None:
    """Name transformers' own tokenizer and Pixtral processor in the folder instead of ours."""
    content = read_json(folder / "tokenizer_config.json")
    content |= {"tokenizer_class": "TokenizersBackend", "processor_class": "PixtralProcessor"}
    if sizes is None:
        del content["processor_class"]
        (folder / "processor_config.json").unlink(missing_ok=True)
    else:
        patch, merge = sizes["patch_size"], sizes["spatial_merge_size"]
        pixels = {"patch_size": {"height": patch, "width": patch}, "size": {"longest_edge": sizes["max_image_size"]}}
        # transformers has the same numbers as defaults; llama.cpp's converter reads them here
        images = {
            "image_processor_type": "PixtralImageProcessor",
            **pixels,
            "image_mean": list(MEAN),
            "image_std": list(STD),
        }
        own = {"processor_class": "PixtralProcessor", "patch_size": patch, "spatial_merge_size": merge}
        _write_json(folder / "processor_config.json", {**own, "image_processor": images})
    _write_json(folder / "tokenizer_config.json", content)


def copy_code(folder: Path) -> None:
    """Put the files that the model needs into `folder`, and name their classes in its configuration files."""
    package = Path(modeling_small4.__file__).parent
    for name in sorted(reachable(package, DOORS)):
        shutil.copyfile(package / f"{name}.py", folder / f"{name}.py")
    processing = {key: AUTO_MAP[key] for key in ("AutoProcessor", "AutoImageProcessor", "AutoTokenizer")}
    for name, entries in (
        ("config.json", AUTO_MAP),
        ("processor_config.json", processing),
        ("tokenizer_config.json", processing),
    ):
        if not (folder / name).exists():
            continue
        content = {**read_json(folder / name), "auto_map": entries}
        if isinstance(
            content.get("image_processor"), dict
        ):  # AutoImageProcessor reads this part of processor_config.json only
            content["image_processor"]["auto_map"] = {"AutoImageProcessor": entries["AutoImageProcessor"]}
        _write_json(folder / name, content)


def reachable(package: Path, names: set[str]) -> set[str]:
    """The modules of a flat package that `names` import, directly or indirectly."""
    seen: set[str] = set()
    while todo := names - seen:
        for name in todo:
            names = names | imports_of(package / f"{name}.py")
        seen |= todo
    return seen


def imports_of(module: Path) -> set[str]:
    """The modules of the same package that a module of a flat package imports."""
    text = module.read_text(encoding="utf-8", errors="replace")
    return set(re.findall(r"^\s*from\s+\.(\w+)\s+import", text, re.MULTILINE))


def _write_json(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
