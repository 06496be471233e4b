"""What `apply_chat_template` is told, to give model inputs instead of a string."""

from typing import Any

ENCODED: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
PROMPT: dict[str, Any] = {"add_generation_prompt": True, **ENCODED}
