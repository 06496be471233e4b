"""When a stored result's commit is called dirty: for changed code, not for changed results, prose or files that are not
tracked. And what writing a result or training may not replace."""

import json
import subprocess
from pathlib import Path

import pytest

from model_card.demo_recipe.recipe import Recipe
from model_card.demo_recipe.train import train
from model_card.evals.record import _commit, provenance, write

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


def test_only_results_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "new" / "one.json"
    for value in (1, 2):
        write(out, provenance(["python", "-m", "x"]) | {"value": value})
        assert json.loads(out.read_text())["value"] == value
    (tmp_path / "link.json").symlink_to(out)
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "mine.json").write_text('{"command": "x", "diary": "dear"}')
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "folder.json").mkdir()
    for name in ("link", "dangling", "list", "mine", "text", "folder"):
        before = sorted((path, path.is_dir() or path.is_symlink() or path.read_bytes()) for path in tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=f"{name}.json: is no stored result"):
            write(tmp_path / f"{name}.json", {"value": 3})
        assert before == sorted((p, p.is_dir() or p.is_symlink() or p.read_bytes()) for p in tmp_path.rglob("*"))


def test_training_begins_in_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tekken.json").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("mine", "link"):
        with pytest.raises(ValueError, match="choose a new folder"):
            train(tmp_path / name, Recipe())
    assert (tmp_path / "mine" / "tekken.json").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]
