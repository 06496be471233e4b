"""When a stored result's commit is called dirty: for changed code, not for changed results, prose or files that are not tracked."""

import subprocess
from pathlib import Path

import pytest

from model_card.evals.record import _commit

FILES = ("modeling_small4/code.py", "model_card/results/one.json", "model_card/card.md", "README.md", "tests/test_x.py")


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=x", "-c", "user.email=x@x")
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "x")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "dirty"), [*zip(FILES, (True, False, False, False, False), strict=True), ("modeling_small4/new.py", False)]
)
def test_what_makes_a_commit_dirty(repository: Path, name: str, dirty: bool) -> None:
    clean = _commit(repository)
    assert clean is not None
    assert len(clean) == 40
    (repository / name).write_text("after\n")
    assert _commit(repository) == (f"{clean}-dirty" if dirty else clean)


def test_outside_a_repository(tmp_path: Path) -> None:
    assert _commit(tmp_path) is None
