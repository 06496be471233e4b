"""README's Python examples, run in order in one session, as a reader would."""

import ast
import re
from pathlib import Path

import pytest
import torch

from modeling_small4 import demo_checkpoint

TEXT = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        demo_checkpoint()
    except FileNotFoundError:
        pytest.skip("the demo checkpoint is not there")
    torch.set_num_threads(1)
    session: dict[str, object] = {}
    printed = []
    for number, example in enumerate(EXAMPLES):
        exec(compile(example, f"README.md, example {number + 1}", "exec"), session)
        printed.append(capsys.readouterr().out)
    assert "624" in printed[0]
    direct, thought = ast.literal_eval(printed[1])
    assert direct["reasoning_content"] is None
    assert thought["reasoning_content"]
    assert thought["content"]
    assert "red" in printed[2]
    assert printed[-2:] == ["168\n", "True\n"]
