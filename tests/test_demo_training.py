"""What trains the demo checkpoint: labels where they belong, rows dealt once, an optimizer and a team that add up."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_card.demo_recipe import team as team_module
from model_card.demo_recipe.batches import IGNORED, LONGEST, Parts, collate, cost, cut_thought, positions
from model_card.demo_recipe.muon import Muon, orthogonal
from model_card.demo_recipe.recipe import Stage
from model_card.demo_recipe.team import Team, run_as_team

MARKS = {"[THINK]": 34, "[/THINK]": 35}


# -- batches -----------------------------------------------------------------------------------------------------------


def test_of_a_cut_thought_nothing_is_learned() -> None:
    #      <s> [INST] user [/INST] [THINK] a  b  [/THINK] answer </s> [INST] user [/INST] answer </s>
    ids = [1, 3, 50, 4, 34, 60, 61, 35, 70, 2, 3, 51, 4, 71, 2]
    labels = [*[IGNORED] * 4, 34, 60, 61, 35, 70, 2, *[IGNORED] * 3, 71, 2]
    assert cut_thought(ids, labels, 1, MARKS) == (
        [1, 3, 50, 4, 34, 60, 35, 70, 2, 3, 51, 4, 71, 2],
        [*[IGNORED] * 7, 70, 2, *[IGNORED] * 3, 71, 2],
    )
    assert cut_thought(ids, labels, 9, MARKS)[0] == ids


@given(st.integers(30, 5000), st.integers(0, 8000))
def test_a_gap_leaves_out_positions_once(length: int, gap: int) -> None:
    places = positions(length, gap)
    steps = [b - a for a, b in pairwise(places)]
    assert len(places) == length
    assert places[0] == 0
    assert sum(step != 1 for step in steps) <= 1
    assert places[-1] == length - 1 + min(gap, max(0, LONGEST - length))


@pytest.mark.parametrize(("length", "kept"), [(60, True), (900, False)])
def test_positions_with_gaps_come_with_a_mask(length: int, kept: bool) -> None:
    """Without one they would be read as packed sequences, of which the later does not see the earlier."""
    row = {"input_ids": [5] * length, "labels": [IGNORED] * length, "gap": 300, "images": []}
    batch = collate([row, row | {"gap": 0}], 11, None)
    assert ("position_ids" in batch) == kept
    assert (batch["attention_mask"].sum(1) == length).all()
    if kept:
        assert batch["position_ids"][:, length - 1].tolist() == [length + 299, length - 1]


def test_members_share_each_row_of_a_step_once() -> None:
    rng = random.Random(0)
    rows = [{"input_ids": [i] * rng.randint(5, 90), "gap": 0, "images": []} for i in range(40)]
    stage = Stage(rows=40, steps=5, rows_per_step=12, parts_per_step=3)
    table = Table([row | {"labels": row["input_ids"]} for row in rows])
    members = [Parts(table, None, 11, stage, 0, member, 2) for member in range(2)]  # type: ignore[arg-type]
    assert [len(member) for member in members] == [15, 15]
    for step in range(3):
        batches = [member[step * 3 + part] for member in members for part in range(3)]
        seen = sorted(int(row[0]) for batch in batches for row in batch["input_ids"])
        assert seen == sorted(members[0].order[step * 12 : step * 12 + 12])
        labels = sum(len(rows[i]["input_ids"]) - 1 for i in seen)
        assert {int(batch["total"]) for batch in batches} == {labels}
    assert sorted(members[0].order[:40]) == list(range(40))
    assert cost(rows[0] | {"images": [None]}) > cost(rows[0])


class Table(list):
    """As much of a dataset as `Parts` reads: rows by a list of numbers, in columns."""

    def __getitem__(self, chosen: Any) -> Any:
        return {name: [list.__getitem__(self, i)[name] for i in chosen] for name in list.__getitem__(self, 0)}


# -- the optimizer and the team
# --------------------------------------------------------------------------------------------


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


def small_layers() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))


def take_steps(team: Team, out: Path) -> None:
    """Three steps on a share of ten rows each; the last layer but one of a member's own is left out of the first
    step.
    """
    torch.set_num_threads(1)
    layers = small_layers()
    matrices = [p for p in layers.parameters() if p.ndim == 2]
    others = [p for p in layers.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "matrices": True, "lr": 0.05}, {"params": others, "lr": 0.01}]
    optimizer = Muon(groups, team=team, max_norm=0.5)
    for step in range(3):
        rows = torch.randn(10, 6, generator=torch.Generator().manual_seed(step))
        layers(rows[team.rank :: team.size]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(layers.state_dict(), out / f"{team.size}-{team.rank}.pt")


@pytest.mark.slow
def test_a_team_takes_the_steps_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_module.processes, "spawn", forked.spawn)
    for size in (1, 2):
        run_as_team(take_steps, size, tmp_path)
    alone, *both = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for name in alone:
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], alone[name])
