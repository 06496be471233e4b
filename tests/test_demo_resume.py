"""The demo's training goes on where it was interrupted: the weights are those of an uninterrupted run, bit for bit.

Each training runs in a process of its own on one thread, so that nothing of one run can reach into the other.
"""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from forked import python

pytestmark = pytest.mark.slow

TRAIN = """
import sys
from pathlib import Path

import torch
from model_card.demo_recipe.recipe import Looking, Recalling, Recipe, Stage
from model_card.demo_recipe.train import train

torch.set_num_threads(1)
tasks = {"picture": 0.5, "arithmetic": 0.5}
short = Stage(tasks=tasks, rows=12, steps=4, rows_per_step=4, warmup_steps=1, decay_steps=2, save_steps=2)
long = Stage(tasks=tasks, rows=8, steps=2, rows_per_step=4, warmup_steps=1)
lessons = {"looking": Looking(steps=1, pictures_per_step=2), "recalling": Recalling(steps=2, rows_per_step=4)}
wording = Stage(tasks=tasks, rows=8, steps=2, rows_per_step=4, warmup_steps=1, reworded=0.5)
train(Path(sys.argv[1]), Recipe(**lessons, short=short, long=long, wording=wording, last=wording))
"""


def run_training(out: Path) -> None:
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = python("-c", TRAIN, str(out), env=os.environ | threads)
    assert done.returncode == 0, done.stderr[-2000:]


def digests(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of every weight file of a run, the exported one included."""
    files = [folder / "model.safetensors", *sorted((folder / "run").glob("*.safetensors"))]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_run_cut_in_the_middle_of_a_stage_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_training(whole)
    shutil.copytree(whole, cut)
    for name in ("short", "long", "wording", "last"):
        (cut / "run" / f"{name}.safetensors").unlink()
    for name in ("long", "wording", "last"):
        shutil.rmtree(cut / "run" / name)
    shutil.rmtree(cut / "run" / "short" / "checkpoint-4")
    (cut / "model.safetensors").unlink()
    run_training(cut)
    assert digests(cut) == digests(whole)
    assert len(set(digests(whole).values())) == 7
