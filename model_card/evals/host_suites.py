"""transformers' own test classes, run on ours from its source distribution; the table of what passes, and why what
does not.

    python -m model_card.evals.host_suites [--sdist transformers-5.24.0.tar.gz] [--checkout CLONE] [--out FILE]

Needs `pip install parameterized wheel`; without --sdist the distribution is fetched by pip. It leaves out the files of
GenerationTesterMixin and of the pipelines' tests, so those two run only with --checkout, a clone of transformers. Ends
with status 1 if a test fails that has no reason in `host_reasons`, or if one that has a reason passes. What is tested
stands in the files of `host_tests`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import transformers

from model_card.evals.host_reasons import REASONS
from model_card.evals.record import provenance, write

HOST_TESTS = Path(__file__).with_name("host_tests")
# Class of transformers -> our file that is tested by it.
SUITES = {
    "ModelTesterMixin": "test_small4.py",
    "GenerationTesterMixin": "test_small4_generation.py",
    "ProcessorTesterMixin": "test_small4_processor.py",
    "ImageProcessingTestMixin": "test_small4_images.py",
    "TokenizerTesterMixin": "test_small4_tokenizer.py",
    "TokenizersBackendTesterMixin": "test_small4_backend.py",
    "PipelineTesterMixin": "test_small4_pipelines.py",
}
TASKS = (
    "feature_extraction",
    "image_text_to_text",
    "text_classification",
    "text_generation",
    "token_classification",
    "zero_shot",
)
# What only a checkout has, for the classes that need it.
OF_CHECKOUT = {
    "GenerationTesterMixin": ("generation/test_utils.py",),
    "PipelineTesterMixin": tuple(f"pipelines/test_pipelines_{task}.py" for task in TASKS),
}
STUBS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    all_generative_model_classes = ()\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "pipelines/test_pipelines_common.py": "class ANY:\n"
    "    def __init__(self, *types):\n        self.types = types\n\n"
    "    def __eq__(self, other):\n        return isinstance(other, self.types)\n",
    "fixtures/sample_text.txt": "The quick brown fox jumps over the lazy dog.\n\nNumbers: 1, 22, 333.\nÄrger, señor.\n",
}
# Names of transformers 5.6 in the files of a checkout -> those of 5.24.
RENAMED = {b'"dynamic_full"': b'"dynamic"', b"get_max_cache_shape": b"get_max_length"}

Outcomes = dict[str, tuple[str, str]]  # test -> "passed", "skipped" or "failed", and the reason that pytest gave


def fetch(folder: Path) -> Path:
    """The source distribution of the transformers that is installed, from the package index."""
    wanted = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", f"transformers=={transformers.__version__}"]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *wanted, "-d", str(folder)], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def unpack(sdist: Path, folder: Path, checkout: Path | None = None) -> None:
    """Its test classes, what stands for files that it leaves out, and our suites, as one package `tests`."""
    files: dict[str, bytes] = {name: text.encode() for name, text in STUBS.items()}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                source = archive.extractfile(member)
                assert source is not None
                files[parts[2]] = source.read()
    if checkout is not None:
        for name in (name for names in OF_CHECKOUT.values() for name in names):
            files[name] = _git(checkout, "show", f"HEAD:tests/{name}")
            for old, new in RENAMED.items():
                files[name] = files[name].replace(old, new)
    files |= {file.name: file.read_bytes() for file in HOST_TESTS.glob("*.py")}
    files["../utils/fetch_hub_objects_for_ci.py"] = files.pop("fetch_hub_objects_for_ci.py")
    for name, content in files.items():
        file = folder / "tests" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if file.suffix == ".py":
            file.with_name("__init__.py").touch()


def described(checkout: Path) -> dict[str, str]:
    """What the snapshot of transformers is: its commit, the day of it, and the version that it was to become."""
    commit, day = _git(checkout, "show", "-s", "--format=%H %cs", "HEAD").decode().split()
    found = re.search(rb'version="([^"]+)"', _git(checkout, "show", "HEAD:setup.py"))
    return {"commit": commit, "date": day, "version": found.group(1).decode() if found else "unknown"}


def run(folder: Path, suite: str, only: str | None) -> Outcomes:
    """Run one suite."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=out.xml"]
    command += [f"tests/{SUITES[suite]}", *(["-k", only] if only else [])]
    path = os.pathsep.join(map(str, (folder, folder / "utils", Path.cwd())))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    if found.returncode not in (0, 1, 5):
        raise RuntimeError(f"pytest could not run {SUITES[suite]}:\n{found.stdout[-4000:]}")
    return read(folder / "out.xml")


def read(report: Path) -> Outcomes:
    """Outcomes in a JUnit report."""
    out = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome, why = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                message = " ".join((child.get("message") or "").split())
                temporary = rf"{re.escape(tempfile.gettempdir())}[\w./\\-]*"  # folders of one run say nothing
                why = re.sub(temporary, "FOLDER", message)[:200]
        out[str(case.get("name"))] = (outcome, why)
    return out


def reason(suite: str, test: str) -> str | None:
    """Why our class fails this test, and means to."""
    return next((why for pattern, why in REASONS[suite].items() if fnmatchcase(test, pattern)), None)


def table(found: dict[str, Outcomes]) -> dict[str, Any]:
    """The stored result, and what is in it that nobody expected."""
    suites: dict[str, Any] = {
        suite: {"not_run": "transformers' source distribution does not contain it; give --checkout"} for suite in SUITES
    }
    unexplained, outdated = [], []
    for suite, tests in found.items():
        failed = {name: why for name, (outcome, why) in sorted(tests.items()) if outcome == "failed"}
        suites[suite] = {
            "passed": sorted(name for name, (outcome, _) in tests.items() if outcome == "passed"),
            "skipped": {name: why for name, (outcome, why) in sorted(tests.items()) if outcome == "skipped"},
            "failed": {name: {"reason": reason(suite, name), "error": why} for name, why in failed.items()},
        }
        unexplained += [f"{suite}: {name}" for name in failed if reason(suite, name) is None]
        outdated += [
            f"{suite}: {pattern}"
            for pattern in REASONS[suite]
            if not any(fnmatchcase(name, pattern) for name in failed)
        ]
    return {"suites": suites, "unexplained": unexplained, "outdated_reasons": outdated}


def _git(clone: Path, *words: str) -> bytes:
    return subprocess.run(["git", "-C", str(clone), *words], check=True, capture_output=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description="Run transformers' own test classes on ours.")
    parser.add_argument("--sdist", type=Path, help="transformers' source distribution (default: fetched by pip)")
    parser.add_argument("--checkout", type=Path, metavar="CLONE", help="a clone of transformers, for all classes")
    parser.add_argument("--suite", choices=SUITES, help="run this class alone; nothing is stored then")
    parser.add_argument("--only", help="tests to run, as pytest's -k; nothing is stored then")
    parser.add_argument("--out", type=Path, default=Path("model_card/results/host_suites.json"))
    args = parser.parse_args()
    wanted = [args.suite] if args.suite else [each for each in SUITES if args.checkout or each not in OF_CHECKOUT]
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(args.sdist or fetch(folder), folder, args.checkout)
        for suite in wanted:
            found[suite] = run(folder, suite, args.only)
            result = table(found)
            print(suite, *(f"{key}: {len(tests)}" for key, tests in result["suites"][suite].items()), flush=True)
            print(json.dumps(result["suites"][suite]["failed"], indent=1), flush=True)
    if not args.only and not args.suite:
        checkout = {"checkout": described(args.checkout)} if args.checkout else {}
        write(args.out, provenance(["python", "-m", "model_card.evals.host_suites"]) | checkout | result)
    return int(bool(result["unexplained"] or (result["outdated_reasons"] and not args.only)))


if __name__ == "__main__":
    sys.exit(main())
