"""The table of transformers' own tests: what a report says, which failures have a reason, and that the stored table is
complete.
"""

import json
import tarfile
from pathlib import Path

from model_card.evals import host_suites

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
    result = host_suites.table(found)
    suite = result["suites"]["ModelTesterMixin"]
    assert suite["passed"] == ["test_one"]
    assert suite["skipped"] == {"test_two": "no GPU"}
    assert suite["failed"]["test_correct_missing_keys"]["reason"] == host_suites.REASONS["test_correct_missing_keys"]
    assert result["unexplained"] == ["test_new"]
    assert "test_tp_plan_matches_params" in result["outdated_reasons"]
    assert "test_correct_missing_keys" not in result["outdated_reasons"]


def test_what_is_unpacked(tmp_path: Path) -> None:
    source = tmp_path / "transformers-0" / "tests"
    (source / "models").mkdir(parents=True)
    for name in ("test_modeling_common.py", "models/test_x.py", "data.json"):
        (source / name).write_text("x = 1\n")
    with tarfile.open(tmp_path / "sdist.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "transformers-0", "transformers-0")
    (tmp_path / "work").mkdir()
    host_suites.unpack(tmp_path / "sdist.tar.gz", tmp_path / "work")
    found = {str(file.relative_to(tmp_path / "work" / "tests")) for file in (tmp_path / "work").rglob("*.py")}
    packages = {"__init__.py", "generation/__init__.py", "exporters/__init__.py"}
    assert found == {"test_modeling_common.py", "test_small4.py", *host_suites.STUBS, *packages}
    compile(host_suites.SUITE, "suite", "exec")


def test_the_stored_table_leaves_nothing_unexplained() -> None:
    stored = json.loads((Path(host_suites.__file__).parents[1] / "results" / "host_suites.json").read_text("utf-8"))
    suite = stored["suites"]["ModelTesterMixin"]
    assert len(suite["passed"]) > 90
    assert stored["unexplained"] == stored["outdated_reasons"] == []
    assert all(entry["reason"] == host_suites.reason(name) for name, entry in suite["failed"].items())
    assert stored["versions"]["transformers"].startswith("5.24")
