"""Tekken files for tests: real ranks of the published vocabulary, the release's control tokens, format v15.

Must not know: our own tokenizer code.
"""

import json
from pathlib import Path
from typing import Any

import mistral_common

CONTROL = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[AVAILABLE_TOOLS]": 5, "[/AVAILABLE_TOOLS]": 6,
    "[TOOL_RESULTS]": 7, "[/TOOL_RESULTS]": 8, "[TOOL_CALLS]": 9, "[IMG]": 10, "<pad>": 11, "[IMG_BREAK]": 12,
    "[IMG_END]": 13, "[PREFIX]": 14, "[MIDDLE]": 15, "[SUFFIX]": 16, "[SYSTEM_PROMPT]": 17, "[/SYSTEM_PROMPT]": 18,
    "[TOOL_CONTENT]": 19, "[CALL_ID]": 31, "[ARGS]": 32, "[THINK]": 34, "[/THINK]": 35, "[MODEL_SETTINGS]": 36,
    "[/MODEL_SETTINGS]": 37,
}  # fmt: skip


def tekken(words: int, control: int = 1000, image: dict[str, int] | None = None, **config: Any) -> dict[str, Any]:
    """A Tekken file's content: the first `words` ranks of the published vocabulary after `control` control tokens."""
    source = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text("utf-8"))
    by_rank = {rank: name for name, rank in CONTROL.items()}
    out = {
        "config": {
            "pattern": source["config"]["pattern"],
            "num_vocab_tokens": words,
            "default_vocab_size": words + control,
            "default_num_special_tokens": control,
            "version": "v15",
            **config,
        },
        "vocab": source["vocab"][:words],
        "special_tokens": [
            {"rank": rank, "token_str": by_rank.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
            for rank in range(control)
        ],
        "model_settings_builder": {
            "reasoning_effort": {"type": "enum", "accepts_none": True, "default": "none", "values": ["none", "high"]}
        },
    }
    return out if image is None else out | {"image": image}


def write_tekken(folder: Path, words: int, image: dict[str, int] | None = None, **options: Any) -> Path:
    """Writes `tekken.json` into `folder` and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tekken.json"
    path.write_text(json.dumps(tekken(words, image=image, **options), ensure_ascii=False), encoding="utf-8")
    return path
