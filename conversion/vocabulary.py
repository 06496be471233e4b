"""The vocabulary of a checkpoint and the rules by which it is used, each as one hash, the same for `tekken.json` and
the `tokenizer.json` that is made of it.

Knows the two files' ways to write a token; it does not tokenize.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_small4.files_reading import naming
from modeling_small4.tokenization_checks import check_tokenizer

from .checkpoint import CheckpointError, read_json
from .tekken_file import read_tekken

TEKKEN, TOKENIZER = "tekken.json", "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """tokens: how many there are. sha256: of all of them in the order of their ids. file: where they were read. single:
    the bytes that are a token by themselves, all 256 in a whole vocabulary. ranked: whether the merges follow
    from the order of ids, as Tekken's do. rules: the hash of the pattern that splits texts into words and, where they
    do not, of the merges.
    """

    tokens: int
    sha256: str
    file: str
    single: frozenset[int]
    ranked: bool
    rules: str


def read_vocabulary(folder: Path, tekken: bool) -> Vocabulary | None:
    """The vocabulary of the folder's tokenizer: of `tekken.json` if `tekken` is on or there is no other, else of
    `tokenizer.json`; None where neither is there.

    Raises:
        CheckpointError: A file that cannot be read as one of the two.
    """
    names = (TEKKEN, TOKENIZER) if tekken else (TOKENIZER, TEKKEN)
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        return None
    content = read_tekken(folder / name) if name == TEKKEN else read_json(folder / name)
    try:
        with naming(folder / name):
            if name == TOKENIZER:
                check_tokenizer(content)
        tokens = list(_tekken(content) if name == TEKKEN else _tokenizer(content))
        pattern, merges = (content["config"]["pattern"], None) if name == TEKKEN else _rules(content)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{folder / name}: is no tokenizer of this model ({type(error).__name__})") from None
    hashed = hashlib.sha256()
    for token in tokens:
        hashed.update(len(token).to_bytes(4, "little") + token)
    single = frozenset(token[0] for token in tokens if len(token) == 1)
    rules = hashlib.sha256(json.dumps([pattern, merges]).encode()).hexdigest()
    return Vocabulary(len(tokens), hashed.hexdigest(), name, single, merges is None, rules)


def _tekken(content: dict[str, Any]) -> Iterator[bytes]:
    """All tokens by id: the special tokens, then as many of the ranked ones as the file says are used."""
    config = content["config"]
    special, total = config["default_num_special_tokens"], config["default_vocab_size"]
    names = {entry["rank"]: entry["token_str"] for entry in content["special_tokens"]}
    yield from (names.get(rank, f"<SPECIAL_{rank}>").encode() for rank in range(special))
    ranked = {entry["rank"]: entry["token_bytes"] for entry in content["vocab"][: total - special]}
    yield from (base64.b64decode(ranked[rank]) for rank in range(total - special))


def _tokenizer(content: dict[str, Any]) -> Iterator[bytes]:
    """All tokens by id: special ones as they are, the others out of the letters that stand for bytes."""
    special = {entry["id"]: entry["content"].encode() for entry in content["added_tokens"] if entry["special"]}
    names = {number: token for token, number in content["model"]["vocab"].items()}
    letters = _letters()
    for number in range(max([*special, *names]) + 1):
        yield special[number] if number in special else bytes(letters[letter] for letter in names[number])


def _rules(content: dict[str, Any]) -> tuple[str, list[list[str]] | None]:
    """The pattern that splits texts into words, and the merges; None for those that follow from the vocabulary: all
    pairs of tokens that are a token, in the order of its ids.
    """
    special = {entry["content"] for entry in content["added_tokens"] if entry["special"]}
    vocabulary = {token: number for token, number in content["model"]["vocab"].items() if token not in special}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]
    numbers = [vocabulary.get(left + right, -1) for left, right in merges]
    pairs = ((token[:cut], token[cut:]) for token in vocabulary for cut in range(1, len(token)))
    follow = {(left, right) for left, right in pairs if left in vocabulary and right in vocabulary}
    ordered = numbers == sorted(numbers) and len(merges) == len(follow) and {(a, b) for a, b in merges} == follow
    return content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"], None if ordered else merges


def _letters() -> dict[str, int]:
    """The letters with which byte-level BPE writes bytes (GPT-2): printable ones themselves, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
