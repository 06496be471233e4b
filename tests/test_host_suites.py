"""The table of transformers' own tests: what a report says, which failures have a reason, and that the stored table is
complete.
"""

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from model_card.evals import host_suites
from model_card.evals.host_reasons import REASONS

REPORT = """<testsuites><testsuite>
<testcase name="test_one"/>
<testcase name="test_two"><skipped message="no GPU"/></testcase>
<testcase name="test_correct_missing_keys"><failure message="ValueError: missing"/></testcase>
<testcase name="test_new"><failure message="Error:
 two lines"/></testcase>
</testsuite></testsuites>"""


def test_what_a_report_says(tmp_path: Path) -> None:
    (tmp_path / "out.xml").write_text(REPORT)
    found = host_suites.read(tmp_path / "out.xml")
    assert found["test_new"] == ("failed", "Error: two lines")
    result = host_suites.table({"ModelTesterMixin": found})
    suite = result["suites"]["ModelTesterMixin"]
    assert suite["passed"] == ["test_one"]
    assert suite["skipped"] == {"test_two": "no GPU"}
    why = REASONS["ModelTesterMixin"]["test_correct_missing_keys"]
    assert suite["failed"]["test_correct_missing_keys"]["reason"] == why
    assert result["unexplained"] == ["ModelTesterMixin: test_new"]
    assert "ModelTesterMixin: test_tp_plan_matches_params" in result["outdated_reasons"]
    assert "ModelTesterMixin: test_correct_missing_keys" not in result["outdated_reasons"]
    assert "not_run" in result["suites"]["GenerationTesterMixin"]


def test_a_reason_counts_for_its_own_class_alone() -> None:
    found = {"test_correct_missing_keys": ("failed", "")}
    assert host_suites.table({"PipelineTesterMixin": found})["unexplained"] == [
        "PipelineTesterMixin: test_correct_missing_keys"
    ]


def _sdist(folder: Path) -> Path:
    source = folder / "transformers-0" / "tests"
    (source / "models").mkdir(parents=True)
    for name in ("test_modeling_common.py", "models/test_x.py", "data.json"):
        (source / name).write_text("x = 1\n")
    with tarfile.open(folder / "sdist.tar.gz", "w:gz") as archive:
        archive.add(folder / "transformers-0", "transformers-0")
    return folder / "sdist.tar.gz"


def test_what_is_unpacked(tmp_path: Path) -> None:
    host_suites.unpack(_sdist(tmp_path), tmp_path / "work")
    found = {str(file.relative_to(tmp_path / "work" / "tests")) for file in (tmp_path / "work" / "tests").rglob("*.*")}
    packages = {"__init__.py", "generation/__init__.py", "exporters/__init__.py", "pipelines/__init__.py"}
    ours = {file.name for file in host_suites.HOST_TESTS.glob("*.py")} - {"fetch_hub_objects_for_ci.py"}
    assert found == {"test_modeling_common.py", *ours, *host_suites.STUBS, *packages}
    assert (tmp_path / "work" / "utils" / "fetch_hub_objects_for_ci.py").is_file()
    assert set(host_suites.SUITES.values()) <= ours


def test_what_a_checkout_adds(tmp_path: Path) -> None:
    """The files that the distribution lacks, as they are committed; the version is the one it was to become."""
    clone = tmp_path / "clone"
    names = [name for names in host_suites.OF_CHECKOUT.values() for name in names]
    for name in names:
        (clone / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / "tests" / name).write_text(f"name = {name!r}  # get_max_cache_shape\n")
    (clone / "setup.py").write_text('setup(version="9.9.0.dev0")\n')
    git = ["git", "-C", str(clone), "-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    (clone / "tests" / names[0]).write_text("not committed\n")
    host_suites.unpack(_sdist(tmp_path), tmp_path / "work", clone)
    for name in names:
        assert (tmp_path / "work" / "tests" / name).read_text() == f"name = {name!r}  # get_max_length\n"
    assert host_suites.described(clone)["version"] == "9.9.0.dev0"


def test_the_stored_table_leaves_nothing_unexplained() -> None:
    stored = json.loads((Path(host_suites.__file__).parents[1] / "results" / "host_suites.json").read_text("utf-8"))
    assert stored["unexplained"] == stored["outdated_reasons"] == []
    assert stored["versions"]["transformers"].startswith("5.24")
    for name, suite in stored["suites"].items():
        assert all(entry["reason"] == host_suites.reason(name, test) for test, entry in suite["failed"].items())


@pytest.mark.parametrize(
    ("suite", "least"),
    [
        ("ModelTesterMixin", 100),
        ("GenerationTesterMixin", 30),
        ("ProcessorTesterMixin", 35),
        ("ImageProcessingTestMixin", 15),
        ("TokenizerTesterMixin", 50),
        ("TokenizersBackendTesterMixin", 8),
        ("PipelineTesterMixin", 10),
    ],
)
def test_the_stored_table_has_every_class(suite: str, least: int) -> None:
    stored = json.loads((Path(host_suites.__file__).parents[1] / "results" / "host_suites.json").read_text("utf-8"))
    assert len(stored["suites"][suite]["passed"]) >= least
