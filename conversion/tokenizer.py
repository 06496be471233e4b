"""Makes the text files of a checkpoint folder from a Tekken file: tokenizer, processor, generation settings.

Must not know: weights, the model's configuration.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from transformers.integrations.mistral.tokenizer import MistralConverter

from modeling_small4.chat_template import RESPONSE_TEMPLATE, chat_template
from modeling_small4.files_reading import naming, shown
from modeling_small4.image_processing_small4 import Small4ImageProcessor
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.reasoning import BOS, EOS, PAD, REASONING_MODES, REASONING_TOKENS, UNK, settings_text
from modeling_small4.tokenization_small4 import Small4Tokenizer

from .tekken_file import read_tekken

# Letters, marks, numbers, punctuation, symbols, spaces and controls of several scripts.
_PROBE = (
    "Ab1 é\u0301 ß日本ไทย\u0e33\u0915\u094d .,;!?-_/\\'\"()[]{}<>|@#$%^&*+=~` €½²→\U0001f642\u200d\u200b\ufeff"
    "\t\n\r\n  \0\x7f\u2028x"
)


def write_processor(tekken_json: Path, out: Path, vision: dict[str, Any] | None) -> None:
    """Writes tokenizer, processor, chat template and generation settings into the checkpoint folder `out`.

    Args:
        tekken_json: Mistral's tokenizer file, version v15; copied as `tekken.json`.
        out: the folder; made when missing.
        vision: `{"patch_size", "max_image_size", "spatial_merge_size"}` in pixels, pixels and patches; None for a model
            without vision.

    Raises:
        ValueError: a file of another version, or one that is not a Tekken file.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = read_tokenizer(Path(tekken_json))
    image_processor = Small4ImageProcessor(**vision) if vision is not None else None
    Small4Processor(image_processor, tokenizer).save_pretrained(out)
    (out / "generation_config.json").write_text(json.dumps(generation_settings(tokenizer), indent=2) + "\n")
    if not (out / "tekken.json").exists() or not (out / "tekken.json").samefile(tekken_json):
        shutil.copyfile(tekken_json, out / "tekken.json")


def read_tokenizer(tekken_json: Path) -> Small4Tokenizer:
    """The tokenizer of a Tekken file. Raises ValueError for a file that is not one, or not of version v15."""
    tekken = read_tekken(tekken_json)
    settings = _reasoning_settings(tekken)
    with naming(tekken_json):
        backend = _backend(tekken_json)
    return Small4Tokenizer(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="left",
        chat_template=chat_template(settings),
        response_template=RESPONSE_TEMPLATE,
        reasoning_settings=settings,
    )


def _backend(tekken_json: Path) -> Tokenizer:
    """Converted by transformers; `<s>` is put before plain text, as in the release."""
    converter = MistralConverter(str(tekken_json))
    backend = converter.converted()
    if left := pre_tokenizers.Split(Regex(converter.pattern), behavior="removed").pre_tokenize_str(_PROBE):
        raise ValueError(f"config.pattern leaves out {shown(left[0][0])}, but every letter of a text belongs to a word")
    bos = backend.token_to_id(BOS)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    return backend


def _reasoning_settings(tekken: dict[str, Any]) -> dict[str, Any] | None:
    """The modes that the file allows and its default; None if it has no such setting."""
    builder = (tekken.get("model_settings_builder") or {}).get("reasoning_effort")
    if builder is None:
        return None
    return {"values": [mode for mode in REASONING_MODES if mode in builder["values"]], "default": builder["default"]}


def generation_settings(tokenizer: Small4Tokenizer) -> dict[str, Any]:
    """The contents of `generation_config.json`."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "reasoning_token_ids": reasoning_token_ids(tokenizer),
    }


def reasoning_token_ids(tokenizer: Small4Tokenizer) -> dict[str, int | list[int] | None]:
    """The ids by which `generate`, which has no tokenizer, finds and rewrites a prompt's settings.

    Returns:
        The id of each of `REASONING_TOKENS` (None where the vocabulary lacks it), and the ids of the settings texts
        under "settings_none" and "settings_high".
    """
    out: dict[str, int | list[int] | None] = {
        key: tokenizer.control_ids.get(token) for key, token in REASONING_TOKENS.items()
    }
    for mode in REASONING_MODES:
        out[f"settings_{mode}"] = tokenizer.encode_texts([settings_text(mode)])[0]
    return out
