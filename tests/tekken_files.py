"""Tekken files for tests: real ranks of the published vocabulary, the release's control tokens, format v15.

Must not know: our own tokenizer code.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from model_card.tekken_content import RANKS, published

CONTROL = {name: rank for rank, name in RANKS.items()}


def tekken(words: int, control: int = 1000, image: dict[str, int] | None = None, **config: Any) -> dict[str, Any]:
    """A Tekken file's content: the first `words` ranks of the published vocabulary after `control` control tokens."""
    out = published(words + control, control)
    out["config"] |= config
    return out if image is None else out | {"image": image}


def write_tekken(folder: Path, words: int, image: dict[str, int] | None = None, **options: Any) -> Path:
    """Writes `tekken.json` into `folder` and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tekken.json"
    text = _plain(words) if image is None and not options else _text(tekken(words, image=image, **options))
    path.write_text(text, encoding="utf-8")
    return path


@cache  # nearly every checkpoint of the tests has one of few
def _plain(words: int) -> str:
    return _text(tekken(words))


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)
