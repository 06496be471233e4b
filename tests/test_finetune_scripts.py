"""The scripts of the fine-tuning guide, each run as a reader would: saved to a file and started, in a folder of its
own.
"""

import ast
import json
import os
import shutil
from pathlib import Path

import pytest
from documents import scripts
from forked import python
from peft import PeftModel
from PIL import Image
from transformers import Mistral3ForConditionalGeneration

from modeling_small4 import Small4ForCausalLM

SCRIPTS = scripts()
pytestmark = pytest.mark.slow


def run(name: str, folder: Path) -> str:
    """Standard output."""
    (folder / name).write_text(SCRIPTS[name], encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    done = python(name, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def logged(output: str, name: str) -> list[float]:
    """The values of one name in the lines that trainers print."""
    lines = [ast.literal_eval(line) for line in output.splitlines() if line.startswith("{'")]
    return [float(line[name]) for line in lines if name in line]


def test_all_scripts_are_short_and_there() -> None:
    assert set(SCRIPTS) == {"finetune.py", "lora.py", "sft.py", "dpo.py", "grpo.py", "release.py"}
    assert {name: len(text.splitlines()) for name, text in SCRIPTS.items() if len(text.splitlines()) > 40} == {}


def test_finetune(tmp_path: Path) -> None:
    output = run("finetune.py", tmp_path)
    assert float(output.splitlines()[-1]) > 0.6
    losses = logged(output, "loss")
    assert losses[-1] < losses[0] / 2
    with Image.open(tmp_path / "expert_load.png") as picture:
        assert min(picture.size) > 200


def test_lora(tmp_path: Path) -> None:
    run("lora.py", tmp_path)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["target_parameters"] == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    Small4ForCausalLM.from_pretrained(tmp_path / "merged")
    hosted = Mistral3ForConditionalGeneration.from_pretrained(tmp_path / "base-hf")
    PeftModel.from_pretrained(hosted, tmp_path / "adapter-hf")


def test_release(tmp_path: Path) -> None:
    """Whole, and again as after a kill while the last checkpoint was written."""
    first = run("release.py", tmp_path)
    assert 0 <= float(first.splitlines()[-1]) <= 1
    assert (tmp_path / "merged-fp8" / "params.json").exists()
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    for name in ("merged", "merged-fp8", "adapter"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "run" / "checkpoint-12" / "trainer_state.json").unlink()
    again = run("release.py", tmp_path)
    assert logged(again, "train_loss") != []
    assert again.splitlines()[-1] == first.splitlines()[-1]


def test_sft(tmp_path: Path) -> None:
    output = run("sft.py", tmp_path)
    losses = logged(output, "loss")
    assert losses[-1] < losses[0]
    assert 1.9 < logged(output, "aux_loss")[-1] < 3  # two experts a token: 2 when balanced


def test_dpo(tmp_path: Path) -> None:
    margins = logged(run("dpo.py", tmp_path), "rewards/margins")
    assert margins[-1] > 1


def test_grpo(tmp_path: Path) -> None:
    """The reward rises."""
    first, last = map(float, run("grpo.py", tmp_path).splitlines()[-1].split())
    assert last > first + 0.05
