"""What is installed, what stands where, which names are public, and that the linters and the type checker are
content.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from small4_conversion.bundle import DOORS, reachable

import modeling_small4
from modeling_small4.commands import cli

ROOT = Path(__file__).resolve().parent.parent
TOP = {"modeling_small4", "conversion", "tests", "model_card", "pyproject.toml", "README.md", "LICENSE"}
PUBLIC = {
    "Small4Config", "Small4TextConfig", "Small4VisionConfig",
    "Small4Model", "Small4TextModel", "Small4VisionModel",
    "Small4ForCausalLM", "Small4ForSequenceClassification", "Small4ForTokenClassification",
    "Small4ImageProcessor", "Small4Processor", "Small4Streamer", "Small4Tokenizer", "ImageAccess", "LatentCache",
    "demo_checkpoint",
    "demo_draft",
    "AnswerCallback", "ExpertLoadCallback", "Grammar", "Small4DataCollator", "lora_targets",
    "save_expert_profile", "share_expert_ranks", "stored_lora",
}  # fmt: skip
BUILT = ("build", "dist", "*.egg-info", ".*", "__pycache__", "results")


def python(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=False)


def test_nothing_else_stands_at_the_top() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a clone")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {path.split("/")[0] for path in tracked if not path.startswith(".")} == TOP


def test_public_names() -> None:
    assert set(modeling_small4.__all__) == PUBLIC
    assert all(hasattr(modeling_small4, name) for name in PUBLIC)


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Small5'"):
        modeling_small4.Small5  # noqa: B018


FLAGS = {
    "--model": "folder", "--image": "file", "--reasoning-mode": "high", "--max-new-tokens": "1",
    "--max-thinking-tokens": "0", "--seed": "3", "--preset": "latency", "--expert-memory": "1GB",
    "--draft": "prompt_lookup", "--load-prefix": "file", "--save-prefix": "file",
}  # fmt: skip


@pytest.mark.parametrize("words", [["generate", "PROMPT"], ["chat"]])
def test_flags_of_the_command_line(words: list[str]) -> None:
    parser = cli._parser(words[0])
    given = [word for flag in FLAGS.items() for word in flag]
    found = set(vars(parser.parse_args([*words, *given, "--json"]))) - {"run"}
    names = {flag.removeprefix("--").replace("-", "_") for flag in [*FLAGS, "--json"]}
    assert found == names | {word.lower() for word in words[1:]}


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("modeling_small4", {"conversion", "model_card", "tests", "mistral_common", "torchvision", "cv2"}),
        ("conversion", {"conversion", "model_card", "tests", "torchvision", "cv2"}),
    ],
)
def test_imports_run_one_way(folder: str, forbidden: set[str]) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        assert not _imports(file) & forbidden, file
        if folder == "modeling_small4" and file.name != "cli.py":
            assert "small4_conversion" not in _imports(file), file


def test_shipped_code_is_flat() -> None:
    """Saved code is copied as flat files: what a shipped file imports from the package lies beside it, wherever the
    words stand.
    """
    package = ROOT / "modeling_small4"
    for file in (package / f"{name}.py" for name in reachable(package, DOORS)):
        for match in re.findall(
            r"^\s*from\s+(\.\S*)\s+import|^\s*import\s+(\.\S+)", file.read_text("utf-8"), re.MULTILINE
        ):
            target = "".join(match)
            assert (package / f"{target[1:]}.py").is_file(), f"{file}: {target}"


def test_every_flat_file_ships_and_nothing_else() -> None:
    """What lies flat is what a checkpoint carries, but for five files that only the installed package needs; the rest
    lives in wings.
    """
    package = ROOT / "modeling_small4"
    flat = {file.stem for file in package.glob("*.py")}
    assert flat - {"__init__", "__main__", "registration", "streaming", "pipelines"} == reachable(package, DOORS)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree without anything built; building writes into it."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("pyproject.toml asks for setuptools 77 or later")
    target = tmp_path_factory.mktemp("copy") / "tree"
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*BUILT))
    (target / "model_card" / "demo" / "beside.txt").write_text("any file there is shipped")
    return target


def _build(kind: str, tree: Path) -> Path:
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    done = python("-c", code, cwd=tree)
    assert done.returncode == 0, done.stderr
    return tree / "dist" / done.stdout.split()[-1]


def test_wheel_holds_both_packages_and_the_demo_and_nothing_generic(copy: Path) -> None:
    names = set(zipfile.ZipFile(_build("wheel", copy)).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "modeling_small4",
        "small4_conversion",
    }
    for folder, installed in (("modeling_small4", "modeling_small4"), ("conversion", "small4_conversion")):
        for file in (ROOT / folder).rglob("*.py"):
            assert f"{installed}/{file.relative_to(ROOT / folder).as_posix()}" in names
    for file in (ROOT / "model_card" / "demo").iterdir():
        assert file.name.startswith(".") or f"modeling_small4/demo/{file.name}" in names
    assert "modeling_small4/demo/beside.txt" in names
    assert "modeling_small4/py.typed" in names


def test_sdist_builds_the_same_wheel(copy: Path) -> None:
    direct = zipfile.ZipFile(_build("wheel", copy)).namelist()
    sdist = _build("sdist", copy)
    with tarfile.open(sdist) as archive:
        archive.extractall(copy.parent, filter="data") if sys.version_info >= (3, 12) else archive.extractall(
            copy.parent
        )
    again = zipfile.ZipFile(_build("wheel", copy.parent / sdist.name.removesuffix(".tar.gz"))).namelist()
    assert sorted(direct) == sorted(again)


def test_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```[a-z]*\n(.*?)\n```", text, re.DOTALL)
    for block, last in zip(blocks[:2], (".venv/bin/small4 generate", ".venv/bin/pytest -q"), strict=True):
        assert "\n" not in block
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
        assert block.split("&&")[-1].strip().startswith(last)
    assert text.index(blocks[1]) < 1000


def test_ci_runs_the_readmes_test_command_word_for_word(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("a shell script")
    (tmp_path / ".ci").mkdir()
    for name in ("run", "constraints.txt"):
        shutil.copy(ROOT / ".ci" / name, tmp_path / ".ci" / name)
    (tmp_path / ".venv").mkdir()
    command = 'echo "held by $PIP_CONSTRAINT"; ls -a; echo "3 passed # pytest"; exit 5'
    (tmp_path / "README.md").write_text(
        f"# x\n\n```bash\nfirst\n```\n\n```bash\n{command}\n```\n\n```python\npytest\n```\n"
    )
    done = subprocess.run([str(tmp_path / ".ci" / "run")], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert f"held by {tmp_path.resolve()}/.ci/constraints.txt" in done.stdout
    assert ".venv" not in done.stdout
    assert done.stdout.splitlines()[-1] == "3 passed # pytest"


def test_ruff() -> None:
    pytest.importorskip("ruff")
    for command in (["check"], ["format", "--check"]):
        done = python("-m", "ruff", *command, ".")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy() -> None:
    pytest.importorskip("mypy")
    done = python("-m", "mypy")
    assert done.returncode == 0, done.stdout + done.stderr


def annotations(tree: ast.AST) -> list[ast.expr]:
    """All annotations of a file: of parameters, results and variables."""
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found += [node.returns, *(each.annotation for each in ast.walk(node.args) if isinstance(each, ast.arg))]
        elif isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
    return [each for each in found if each is not None]


def test_few_annotations_are_bare_any() -> None:
    files = [path for name in ("modeling_small4", "conversion", "model_card") for path in (ROOT / name).rglob("*.py")]
    found = [each for path in files for each in annotations(ast.parse(path.read_text("utf-8")))]
    bare = sum(isinstance(each, ast.Name) and each.id == "Any" for each in found)
    print(f"{bare} of {len(found)} annotations are bare Any: {bare / len(found):.1%}")
    assert bare < 0.05 * len(found)
