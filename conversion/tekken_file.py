"""Tekken files (mistral-common's tokenizer files, `tekken.json`), read and checked by mistral-common's rules.

Must not know: tokenizers, what a special token means.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from modeling_small4.files_reading import one_line, shown
from modeling_small4.reasoning import REASONING_MODES
from modeling_small4.tokenization_checks import LONGEST

from .checkpoint import CheckpointError, read_json

VERSION = "v15"
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # mistral-common's


def read_tekken(file: Path) -> dict[str, Any]:
    """The contents of a Tekken file of version v15, in which ids, tokens and settings are as mistral-common needs them.

    Raises:
        CheckpointError: A file that is damaged or of another version; the message names the entry.
    """
    try:
        content = read_json(file)
    except OSError as error:
        raise CheckpointError(f"{file} is no Tekken tokenizer file: {error}") from None
    config = content.get("config")
    if not isinstance(config, dict) or "version" not in config:
        raise CheckpointError(f"{file} is no Tekken tokenizer file: it has no config with a version")
    if config["version"] != VERSION:
        raise CheckpointError(
            f"{file} is a tokenizer of version {one_line(config['version'], 80)}; Mistral Small 4 needs {VERSION}."
        )
    if not isinstance(config.get("pattern"), str) or not config["pattern"]:
        raise CheckpointError(f"{file}: config.pattern is {shown(config.get('pattern'))}, it must be a pattern")
    size, special = (_count(file, config, f"default_{name}") for name in ("vocab_size", "num_special_tokens"))
    if size <= special:
        raise CheckpointError(f"{file}: config.default_vocab_size is {size}, no more than the {special} special tokens")
    names = _check_special(file, content.get("special_tokens"), special)
    found = _check_vocabulary(file, content.get("vocab"), size - special)
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    for name, index in names.items():  # in tokenizer.json, both would be one entry
        same = found.get(bytes(byte_of[letter] for letter in name)) if byte_of.keys() >= set(name) else None
        if same is not None:
            raise CheckpointError(f"{file}: special_tokens[{index}] and vocab[{same}] are both written {shown(name)}")
    _check_settings(file, content.get("model_settings_builder"))
    return content


def _count(file: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 0 < value < 2**31:
        raise CheckpointError(f"{file}: config.{name} is {shown(value)}, it must be a positive integer")
    return value


def _check_special(file: Path, tokens: object, count: int) -> dict[str, int]:
    """The special tokens, each with its place in the list."""
    if not isinstance(tokens, list) or len(tokens) > count:
        said = f"{len(tokens)} entries" if isinstance(tokens, list) else shown(tokens)
        raise CheckpointError(f"{file}: special_tokens is {said}, it must be a list of at most {count} tokens")
    names: dict[str, int] = {}
    for index, token in enumerate(tokens):
        name = token.get("token_str") if isinstance(token, dict) else None
        if not isinstance(token, dict) or not isinstance(name, str) or not name or type(token.get("rank")) is not int:
            raise CheckpointError(f"{file}: special_tokens[{index}] is {shown(token)}, it needs a rank and a token_str")
        if token["rank"] != index:
            raise CheckpointError(f"{file}: special_tokens[{index}] has the rank {token['rank']}; ranks count from 0")
        if len(name) > LONGEST:
            raise CheckpointError(f"{file}: special_tokens[{index}]: {shown(name)} has more than {LONGEST} letters")
        if name in names:
            raise CheckpointError(f"{file}: special_tokens[{names[name]}] and [{index}] are both {shown(name)}")
        names[name] = index
    return names


def _check_vocabulary(file: Path, tokens: object, count: int) -> dict[bytes, int]:
    """The tokens of text, each with its place in the list."""
    if not isinstance(tokens, list) or len(tokens) < count:
        said = f"{len(tokens)} entries" if isinstance(tokens, list) else shown(tokens)
        raise CheckpointError(f"{file}: vocab is {said}, it must be a list of at least {count} tokens")
    found: dict[bytes, int] = {}
    for index, token in enumerate(tokens[:count]):
        data = _bytes(token)
        if data is None or token.keys() != {"rank", "token_bytes", "token_str"}:
            raise CheckpointError(
                f"{file}: vocab[{index}] is {shown(token)}, it must have a rank, token_bytes in base64 and a token_str"
            )
        if type(token["rank"]) is not int or token["rank"] != index:
            raise CheckpointError(f"{file}: vocab[{index}] has the rank {shown(token['rank'])}; ranks count from 0")
        if index < 256 and data != bytes([index]):
            raise CheckpointError(f"{file}: vocab[{index}] must be the byte {index}, but is {shown(data)}")
        if data in found:
            raise CheckpointError(f"{file}: vocab[{found[data]}] and vocab[{index}] are the same bytes")
        found[data] = index
    return found


def _bytes(token: object) -> bytes | None:
    """The bytes of a token of the vocabulary; None if it has none."""
    text = token.get("token_bytes") if isinstance(token, dict) else None
    try:
        return base64.b64decode(text, validate=True) or None if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        return None


def _check_settings(file: Path, builder: object) -> None:
    """The reasoning setting: its values are known, and the default is one of them."""
    where = "model_settings_builder"
    if builder is not None and not (
        isinstance(builder, dict) and builder.keys() <= {"reasoning_effort", "json_schema"}
    ):
        raise CheckpointError(f"{file}: {where} is {shown(builder)}, it must be an object that sets reasoning_effort")
    entry, where = (builder or {}).get("reasoning_effort"), f"{where}.reasoning_effort"
    if entry is None:
        return
    values = entry.get("values") if isinstance(entry, dict) else None
    known = isinstance(values, list) and bool(values) and all(isinstance(v, str) and v in _EFFORTS for v in values)
    if not isinstance(entry, dict) or not isinstance(values, list) or not known or len(set(values)) != len(values):
        raise CheckpointError(f"{file}: {where}.values is {shown(values)}, it must be a list of {', '.join(_EFFORTS)}")
    modes, default = [value for value in values if value in REASONING_MODES], entry.get("default")
    if default not in modes:
        raise CheckpointError(
            f"{file}: {where}.default is {shown(default)}, it must be one of {', '.join(modes or REASONING_MODES)}"
        )
    others = {key: value for key, value in entry.items() if key not in ("values", "default")}
    if not others.items() <= {"type": "enum", "accepts_none": True}.items():
        raise CheckpointError(f'{file}: {where} has {shown(others)}, it must have the type "enum" and accepts_none')
