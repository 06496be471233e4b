"""The demo checkpoint's data and training: right thoughts, a clean split, labels where they belong, a run that resumes exactly."""

import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small4_conversion.demo import arithmetic, pictures
from small4_conversion.demo.arithmetic import Problem
from small4_conversion.demo.batches import IGNORED, Parts, cut_thought, supervised
from small4_conversion.demo.data import dataset, is_held_out
from small4_conversion.demo.muon import Muon, orthogonal
from small4_conversion.demo.recipe import Looking, Recipe, Stage
from small4_conversion.demo.train import train
from small4_conversion.demo.vocabulary import write_tekken

MARKS = {"end_inst": 4, "eos": 2, "think": 34, "end_think": 35, "pad": 11}
numbers = st.integers(0, 9999)
products = st.one_of(st.tuples(numbers, st.integers(0, 9)), st.tuples(st.integers(0, 99), st.integers(0, 99)))
problems = st.one_of(
    st.builds(Problem, numbers, st.sampled_from("+-"), numbers),
    products.map(lambda pair: Problem(pair[0], "x", pair[1])),
)


@given(problems)
def test_every_line_of_a_thought_is_true_and_leads_to_the_answer(problem: Problem) -> None:
    lines = arithmetic.think(problem).splitlines()
    assert lines[0] in (str(problem), f"{problem.right}{problem.sign}{problem.left}")
    for line in lines[1:]:
        if re.search(r"\d[<>=]\d$", line) and "+" not in line and "-" not in line and "x" not in line:
            a, order, b = line[0], line[1], line[2]
            assert {"<": a < b, ">": a > b, "=": a == b}[order]
        elif "=" in line:
            left, right = line.replace("x", "*").split("=")
            assert eval(left) == int(right)
    assert int(lines[-1]) == abs(problem.answer)
    assert problem.answer == eval(str(problem).replace("x", "*"))


def test_questions_hold_both_numbers_in_order() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        problem = arithmetic.draw_problem(rng)
        found = [int(digits) for digits in re.findall(r"\d+", arithmetic.ask(problem, rng))]
        assert sorted(found) == sorted((problem.left, problem.right))


def test_no_problem_or_picture_is_on_both_sides() -> None:
    sides: dict[str, set[str]] = {}
    for split, seed in (("train", 0), ("train", 1), ("held_out", 0), ("held_out", 1)):
        rows = dataset(split, 300, seed, tasks={"arithmetic": 0.8, "picture": 0.2}, modes={"high": 1.0})
        for row in rows:
            first = next(m["reasoning_content"] for m in row["messages"] if m["role"] == "assistant").split("\n")[0]
            image = row["image"]
            operands = sorted(re.findall(r"\d+", first))
            key = image.tobytes().hex() if image else f"{re.sub('[0-9]', '', first)}{operands}"
            simple = not image and max(map(int, operands)) < 10
            assert not (simple and split == "held_out")
            sides.setdefault(split, set()).add(key)
    assert not sides["train"] & sides["held_out"]


@given(problems)
def test_the_order_of_numbers_does_not_change_sides(problem: Problem) -> None:
    assert is_held_out(problem) == is_held_out(Problem(problem.right, problem.sign, problem.left))


def test_the_same_seed_gives_the_same_rows_and_vocabulary(tmp_path: Path) -> None:
    assert list(dataset("train", 60, 3)) == list(dataset("train", 60, 3))
    assert list(dataset("train", 60, 3)) != list(dataset("train", 60, 4))
    for name in ("a", "b"):
        write_tekken(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_scene_is_inside_its_canvas_and_visible() -> None:
    rng = random.Random(2)
    for _ in range(200):
        scene = pictures.draw_scene(rng)
        image = pictures.render(scene)
        assert image.size == (scene.width, scene.height)
        middle = image.getpixel((int(scene.centre[0]), int(scene.centre[1])))
        assert max(abs(a - b) for a, b in zip(middle, scene.paint, strict=True)) <= 2


def test_labels_are_what_the_assistant_writes() -> None:
    #      <s> [INST] user [/INST] [THINK] a  b  [/THINK] answer </s> [INST] user [/INST] answer </s>
    ids = [1, 3, 50, 4, 34, 60, 61, 35, 70, 2, 3, 51, 4, 71, 2]
    labels = supervised(ids, MARKS)
    assert labels == [*[IGNORED] * 4, 34, 60, 61, 35, 70, 2, *[IGNORED] * 3, 71, 2]
    assert cut_thought(ids, labels, 1, MARKS) == (
        [1, 3, 50, 4, 34, 60, 35, 70, 2, 3, 51, 4, 71, 2],
        [*[IGNORED] * 7, 70, 2, *[IGNORED] * 3, 71, 2],
    )
    assert cut_thought(ids, labels, 9, MARKS)[0] == ids


class _Echo:
    """Stands in for a processor: a row's ids are its answer's characters."""

    def apply_chat_template(self, messages: list, **kwargs: object) -> dict:
        return {"input_ids": [1, 4, *map(ord, messages[-1]["content"]), 2]}


def test_parts_hold_each_row_of_a_step_once() -> None:
    rows = dataset("train", 40, 0, tasks={"talk": 1.0}, modes={"none": 1.0})
    stage = Stage({}, rows=40, steps=5, rows_per_step=12, parts_per_step=3)
    parts = Parts(rows, _Echo(), MARKS, stage, 0)
    assert len(parts) == 15
    seen = [row for part in range(9) for row in map(tuple, parts[part]["input_ids"].tolist())]
    assert len(seen) == 36
    again = Parts(rows, _Echo(), MARKS, stage, 0)
    assert torch.equal(again[7]["input_ids"], parts[7]["input_ids"])
    assert sorted(parts.order[:40]) == list(range(40))


def test_orthogonal_against_svd() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 40)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonal(matrices)
    assert torch.linalg.svdvals(result).sub(1).abs().max() < 0.35
    assert torch.nn.functional.cosine_similarity(result.flatten(1), (u @ v).flatten(1)).min() > 0.97
    torch.testing.assert_close(orthogonal(matrices.mT), result.mT)


def test_the_adam_half_is_adamw() -> None:
    start = torch.randn(7)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = Muon([{"params": [ours], "lr": 0.01, "weight_decay": 0.1}])
    other = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.98))
    for step in range(5):
        gradient = torch.sin(start * (step + 1))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A run cut in the middle of a stage ends with the weights of an uncut one, up to the rounding of sums."""
    text = Stage({"arithmetic": 1.0}, rows=16, steps=2, rows_per_step=8)
    joint = Stage({"picture": 1.0}, rows=40, steps=4, rows_per_step=8, warmup_steps=1, decay_steps=2, save_steps=2)
    short = Stage({"arithmetic": 1.0}, rows=16, steps=2, rows_per_step=8)
    recipe = Recipe(text=text, looking=Looking(steps=2, pictures_per_step=4), joint=joint, polish=short, last=short)
    run = tmp_path / "run"
    train(tmp_path, recipe)
    before, uncut = load_file(run / "looking.safetensors"), load_file(run / "joint.safetensors")
    uncut = {name: tensor.clone() for name, tensor in uncut.items()}
    shutil.rmtree(run / "joint" / "checkpoint-4")
    for name in ("joint", "polish", "last"):
        (run / f"{name}.safetensors").unlink()
    (tmp_path / "model.safetensors").unlink()
    train(tmp_path, recipe)
    resumed = load_file(run / "joint.safetensors")
    moved = sum((uncut[name] - before[name]).abs().sum().item() for name in uncut)
    apart = sum((uncut[name] - resumed[name]).abs().sum().item() for name in uncut)
    assert apart < 0.01 * moved
    assert (tmp_path / "model.safetensors").exists()
