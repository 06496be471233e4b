"""What the tests of presets share: a case with pictures, greedy settings, and chats of unlike lengths and modes."""

from typing import Any

from generation_cases import PAD, chat
from oracle import Case

CASE = Case(seed=41)
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
CHATS = [chat(50 + i, *range(60, 60 + 3 * i), mode=("none", "high")[i % 2]) for i in (0, 3, 1, 7, 5)]
