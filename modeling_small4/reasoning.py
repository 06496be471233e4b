"""The two reasoning modes and the control tokens of the chat format, as plain strings.

Shared by the processor (which writes the special tokens), generation (which looks for them in prompt ids) and the
converter (which stores their ids). Must not know: torch, tokenizers, how a conversation is laid out.
"""

import json
from collections.abc import Sequence

from .files_reading import shown

REASONING_MODES = ("none", "high")

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
INST, END_INST = "[INST]", "[/INST]"
SYSTEM, END_SYSTEM = "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"
SETTINGS, END_SETTINGS = "[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"
AVAILABLE_TOOLS, END_AVAILABLE_TOOLS = "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"
TOOL_RESULTS, END_TOOL_RESULTS = "[TOOL_RESULTS]", "[/TOOL_RESULTS]"
TOOL_CALLS, ARGS = "[TOOL_CALLS]", "[ARGS]"
THINK, END_THINK = "[THINK]", "[/THINK]"
IMG, IMG_BREAK, IMG_END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"

# Key in `generation_config.reasoning_token_ids` -> the control token whose id it holds.
REASONING_TOKENS = {
    "bos": BOS,
    "inst": INST,
    "end_inst": END_INST,
    "think": THINK,
    "end_think": END_THINK,
    "settings": SETTINGS,
    "end_settings": END_SETTINGS,
    "system": SYSTEM,
    "end_system": END_SYSTEM,
    "available_tools": AVAILABLE_TOOLS,
    "end_available_tools": END_AVAILABLE_TOOLS,
    "tool_results": TOOL_RESULTS,
    "end_tool_results": END_TOOL_RESULTS,
    "tool_calls": TOOL_CALLS,
}


def check_reasoning_mode(value: object) -> str:
    """Returns `value` when it is one of `REASONING_MODES`; anything else is a ValueError that names them."""
    if not isinstance(value, str) or value not in REASONING_MODES:
        allowed = " or ".join(repr(mode) for mode in REASONING_MODES)
        raise ValueError(f"reasoning_mode is {shown(value)}, but it must be {allowed}.")
    return value


def resolve_reasoning_mode(reasoning_mode: object = None, reasoning_effort: object = None) -> str | None:
    """The mode asked for under either name, or None when neither was given.

    Raises:
        ValueError: a value that is no mode, or two different values at once.
    """
    given = [value for value in (reasoning_mode, reasoning_effort) if value is not None]
    modes = [check_reasoning_mode(value) for value in given]
    if len(set(modes)) > 1:
        raise ValueError(
            f"reasoning_mode={shown(reasoning_mode)} and reasoning_effort={shown(reasoning_effort)} are two names "
            "for one setting and contradict each other; give one of them."
        )
    return modes[0] if modes else None


def settings_text(mode: str) -> str:
    """The text between `[MODEL_SETTINGS]` and `[/MODEL_SETTINGS]`, spelled as in training (mistral-common, v15)."""
    return json.dumps({"reasoning_effort": check_reasoning_mode(mode)}, ensure_ascii=False)


def thought_length(ids: Sequence[int], think: int, end_think: int) -> int:
    """Tokens of an answer's first thought, between `[THINK]` and `[/THINK]` (their ids are given) or the end; 0 without
    one.
    """
    ids = list(ids)
    if think not in ids:
        return 0
    start = ids.index(think) + 1
    return (ids.index(end_think, start) if end_think in ids[start:] else len(ids)) - start
