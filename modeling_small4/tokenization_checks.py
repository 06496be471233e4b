"""What the files of a tokenizer must hold: checked before the tokenizers library reads them, which ends the process, or
reads something else, for some that are damaged.

Must not know: files, chats.
"""

from typing import Any

from .files_reading import shown
from .reasoning import REASONING_MODES

LONGEST = 200  # letters of a special token
_SPLITS = ["Split", "ByteLevel"]
_FIXED = {"behavior": "Isolated", "invert": False, "add_prefix_space": False, "use_regex": False}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def check_tokenizer(content: dict[str, Any]) -> None:
    """Look at the contents of `tokenizer.json`: byte-level BPE in which each id stands for one token.

    Raises:
        ValueError: What is wrong, by its key.
    """
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError(f"model is {shown(model)}, it must be an object of the type BPE")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"model.{name} is {shown(model[name])}, but a token of Small 4 is its bytes and no more")
    if model.get("dropout"):
        raise ValueError(f"model.dropout is {shown(model['dropout'])}, but a text has the same tokens each time")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise ValueError(f"model.vocab must map tokens to ids, but is {shown(vocabulary)}")
    ids = _ids(vocabulary, "model.vocab")
    _check_merges(model.get("merges"), vocabulary)
    _check_words(content.get("pre_tokenizer"))
    _check_around(content)
    added = content.get("added_tokens")
    if not isinstance(added, list):
        raise ValueError(f"added_tokens must be a list, but is {shown(added)}")
    names = _added(added)
    _ids(names, "added_tokens")
    for name, index in names.items():
        if vocabulary.get(name, index) != index or ids.get(index, name) != name:
            raise ValueError(f"added_tokens: {shown(name)} has the id {index}, which model.vocab says otherwise")


def _ids(tokens: dict[str, int], where: str) -> dict[int, str]:
    """Id -> token. Raises ValueError for two tokens with one id, and for an id that cannot be."""
    out: dict[int, str] = {}
    for token, index in tokens.items():
        if not 0 <= index < 2**31:
            raise ValueError(f"{where}: {shown(token)} has the id {shown(index)}")
        if index in out:
            raise ValueError(f"{where}: {shown(out[index])} and {shown(token)} have the same id {index}")
        out[index] = token
    return out


def _check_merges(merges: object, vocabulary: dict[str, int]) -> None:
    if not isinstance(merges, list):
        raise ValueError(f"model.merges must be a list, but is {shown(merges)}")
    for index, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise ValueError(f"model.merges[{index}] must be two tokens, but is {shown(merge)}")
        if parts[0] not in vocabulary or parts[1] not in vocabulary or parts[0] + parts[1] not in vocabulary:
            raise ValueError(f"model.merges[{index}] is {shown(merge)}, which makes no token of model.vocab")


def _check_words(splitter: object) -> None:
    """Texts are split into words by one pattern, and words into bytes."""
    parts = splitter.get("pretokenizers") if isinstance(splitter, dict) else None
    ok = isinstance(parts, list) and [part.get("type") if isinstance(part, dict) else 0 for part in parts] == _SPLITS
    if not isinstance(parts, list) or not ok:
        raise ValueError(f"pre_tokenizer must be a sequence of {' and '.join(_SPLITS)}, but is {shown(splitter)}")
    pattern, others = parts[0].get("pattern"), {**parts[0], **parts[1]}
    if not isinstance(pattern, dict) or not isinstance(pattern.get("Regex"), str) or not pattern["Regex"]:
        raise ValueError(f"pre_tokenizer: the pattern must be a Regex, but is {shown(pattern)}")
    for name, value in _FIXED.items():
        if others.get(name) is not value and others.get(name) != value:
            raise ValueError(f"pre_tokenizer: {name} must be {value!r}, but is {shown(others.get(name))}")


def _check_around(content: dict[str, Any]) -> None:
    """Nothing but an escape's backslash is taken from a text, nothing but special tokens put around its ids, and bytes
    come of them again."""
    normalizer = content.get("normalizer")
    for part in _parts(normalizer, "normalizers"):
        if part.get("type") != "Replace" or part.get("content") != "":
            raise ValueError(f"normalizer is {shown(normalizer)}, but Small 4 reads texts as they are")
    for part in _parts(content.get("post_processor"), "processors"):
        single = part.get("single")
        if part.get("type") == "TemplateProcessing" and (
            not isinstance(single, list) or sum("Sequence" in piece for piece in single if isinstance(piece, dict)) != 1
        ):
            raise ValueError(f"post_processor.single must hold the text once, but is {shown(single)}")
    decoder = content.get("decoder")
    if all(part.get("type") != "ByteLevel" for part in _parts(decoder, "decoders")):
        raise ValueError(f"decoder must be ByteLevel, but is {shown(decoder)}")


def _parts(given: object, name: str) -> list[dict[str, Any]]:
    """The parts of a sequence of the tokenizers library, or the one part that it is."""
    parts = given.get(name, [given]) if isinstance(given, dict) else []
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _added(tokens: list[Any]) -> dict[str, int]:
    out: dict[str, int] = {}
    for index, token in enumerate(tokens):
        name = token.get("content") if isinstance(token, dict) else None
        flags = [token.get(flag, False) for flag in _FLAGS] if isinstance(token, dict) else []
        if not isinstance(name, str) or not name or type(token.get("id")) is not int or not _all_bools(flags):
            raise ValueError(f"added_tokens[{index}] must have an id and a content, but is {shown(token)}")
        if len(name) > LONGEST:
            raise ValueError(f"added_tokens[{index}]: {shown(name)} has more than {LONGEST} letters")
        if name in out:
            raise ValueError(f"added_tokens[{index}]: {shown(name)} stands there twice")
        out[name] = token["id"]
    return out


def _all_bools(values: list[object]) -> bool:
    return all(isinstance(value, bool) for value in values)


def check_reasoning_settings(settings: object) -> None:
    """Look at `reasoning_settings` of `tokenizer_config.json`: the modes of the model and which of them is the default.

    Raises:
        ValueError: Anything else, None excepted.
    """
    if settings is None:
        return
    values = settings.get("values") if isinstance(settings, dict) else None
    known = isinstance(values, list) and all(isinstance(v, str) and v in REASONING_MODES for v in values)
    if (
        not isinstance(settings, dict)
        or not isinstance(values, list)
        or not known
        or settings.get("default") not in values
    ):
        raise ValueError(
            f"reasoning_settings is {shown(settings)}, it must have values, of {' and '.join(REASONING_MODES)}, and a "
            "default among them"
        )
