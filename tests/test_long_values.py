"""A value that is wrong and long is shown in part: each message stays one line that can be read."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_small4 import ImageAccess, Small4Config, Small4ImageProcessor
from modeling_small4.drafts_loading import drafting_for
from modeling_small4.image_sources import load_image
from modeling_small4.loss import loss_in_chunks
from modeling_small4.network.fetch import fetch
from modeling_small4.planner.hardware import parse_machine
from modeling_small4.planner.layout import plan
from modeling_small4.server.conversation import from_messages
from modeling_small4.server.errors import ApiError

LONG = "é\n'" * 20_000
CONFIG = Small4Config()
USER = {"role": "user", "content": "a"}
ROOT = Path(__file__).parents[1] / "modeling_small4"

CASES: dict[str, Callable[[], Any]] = {
    "a device": lambda: parse_machine(LONG),
    "one device of several": lambda: parse_machine("4xH100 + " + LONG),
    "a precision": lambda: plan(CONFIG, "4xH100", LONG),
    "a layout": lambda: plan(CONFIG, "4xH100", "fp8", layout=LONG),
    "a draft": lambda: drafting_for(torch.nn.Linear(2, 2), [LONG]),
    "an image's path": lambda: load_image(LONG, ImageAccess()),
    "an image's path that may be read": lambda: load_image("/" + LONG, ImageAccess(paths=True)),
    "an image's URL": lambda: load_image("http://a/" + LONG, ImageAccess()),
    "an image's host": lambda: load_image("http://" + "a" * 60_000 + "/x", ImageAccess()),
    "a host that is not allowed": lambda: fetch("http://" + "a" * 60_000 + "/x", ImageAccess(hosts=("b.example",))),
    "data that is none": lambda: load_image("data:" + LONG, ImageAccess()),
    "a setting of images": lambda: Small4ImageProcessor(patch_size=LONG),
    "a chunk of the loss": lambda: loss_in_chunks(torch.nn.Linear(2, 2), torch.ones(1, 2, 2), torch.ones(1, 2), LONG),
    "a role": lambda: from_messages([USER | {"role": LONG}]),
    "a type of content": lambda: from_messages([USER | {"content": [{"type": LONG}]}]),
    "a field of a message": lambda: from_messages([USER | {LONG: 1}]),
}


@pytest.mark.parametrize("case", CASES)
def test_messages_of_long_values_are_short(case: str) -> None:
    with pytest.raises((ValueError, OSError, ApiError)) as refused:
        CASES[case]()
    said = str(refused.value)
    assert "\n" not in said
    assert 20 < len(said) < 900  # those of devices name all that are known


def test_no_message_shows_a_value_of_a_user_by_itself() -> None:
    """In the server and the planner `shown` writes every value."""
    for file in [*(ROOT / "server").glob("*.py"), *(ROOT / "planner").glob("*.py"), ROOT / "cache.py"]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                text = ast.unparse(node.exc)
                assert not re.search(r"!r\}", text), f"{file.name}: {text}"
