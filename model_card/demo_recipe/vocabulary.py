"""The demo checkpoint's tekken.json: the release's control ids and pattern, and a small vocabulary trained on the
demo's own text.

The first 256 ranks are the bytes, as in every Tekken file, so any text can be written; a few hundred merges follow,
learned by byte-pair encoding from generated questions and answers. Knows nothing of models.

    python -m model_card.demo_recipe.vocabulary OUT/tekken.json
"""

import base64
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from model_card.demo_recipe.tasks.data import corpus
from model_card.tekken_content import content

NUM_SPECIAL = 1000
NUM_VOCABULARY = 1024
# Released Tekken splitting: words with one leading mark or space, single digits, punctuation, line ends, spaces.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# max_image_size is small so that a picture of any size costs at most 4 x 4 image tokens.
VISION = {"patch_size": 14, "max_image_size": 112, "spatial_merge_size": 2}


def train_merges(texts: Iterator[str], size: int) -> list[bytes]:
    """Byte-pair encoding over `texts`: the `size` tokens in order of rank, all 256 bytes first."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    spelled = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    to_byte = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    merged = [bytes(to_byte[symbol] for symbol in token) for token, _ in spelled]
    return [bytes([value]) for value in range(256)] + [token for token in merged if len(token) > 1]


def tekken(vocabulary: list[bytes]) -> dict[str, Any]:
    """A tekken.json of format v15 around `vocabulary`, with every control id of the release."""
    words = [_entry(rank, token) for rank, token in enumerate(vocabulary)]
    return content(PATTERN, words, NUM_SPECIAL) | {
        "image": {
            "image_patch_size": VISION["patch_size"],
            "max_image_size": VISION["max_image_size"],
            "spatial_merge_size": VISION["spatial_merge_size"],
        },
    }


def write_tekken(path: Path, seed: int = 0) -> None:
    """Train the vocabulary on the demo's own text and write it; the same seed writes the same bytes."""
    vocabulary = train_merges(corpus(random.Random(seed)), NUM_VOCABULARY)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tekken(vocabulary), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def _entry(rank: int, token: bytes) -> dict[str, Any]:
    try:
        text: str | None = token.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    return {"rank": rank, "token_bytes": base64.b64encode(token).decode("ascii"), "token_str": text}


if __name__ == "__main__":
    write_tekken(Path(sys.argv[1]))
