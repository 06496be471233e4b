"""What a Tekken file of version v15 holds, with the release's special tokens: for any words, or the first ones of the
published vocabulary, which mistral-common carries. Knows nothing of our tokenizer.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

RANKS = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 31: "[CALL_ID]", 32: "[ARGS]", 34: "[THINK]", 35: "[/THINK]", 36: "[MODEL_SETTINGS]",
    37: "[/MODEL_SETTINGS]",
}  # fmt: skip


def content(pattern: str, words: list[dict[str, Any]], special_tokens: int = 1000) -> dict[str, Any]:
    """The content of a file with these words behind `special_tokens` special tokens."""
    return {
        "config": {
            "pattern": pattern,
            "num_vocab_tokens": len(words),
            "default_vocab_size": special_tokens + len(words),
            "default_num_special_tokens": special_tokens,
            "version": "v15",
        },
        "vocab": words,
        "special_tokens": [
            {"rank": rank, "token_str": RANKS.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
            for rank in range(special_tokens)
        ],
        "model_settings_builder": {
            "reasoning_effort": {"type": "enum", "accepts_none": True, "default": "none", "values": ["none", "high"]}
        },
    }


def published(vocabulary: int, special_tokens: int = 1000) -> dict[str, Any]:
    """The content of a file with `vocabulary` tokens: special ones, then the first of the published vocabulary."""
    pattern, words = _published(vocabulary - special_tokens)
    return content(pattern, [dict(word) for word in words], special_tokens)


@cache  # half a second to read
def _published(count: int) -> tuple[str, list[dict[str, Any]]]:
    import mistral_common

    source = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text("utf-8"))
    return source["config"]["pattern"], source["vocab"][:count]
