"""`small4 check`: everything that can be found wrong with a checkpoint in one evening, in one table and one JSON file.

Reads each tensor once and holds it against a manifest where there is one, and against others of its kind; then tries
tokenizer, template, another layout, and the model itself. What is checked is in `checks/`. Writes nothing but the file
of `--json` and temporary folders.
"""

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from modeling_small4.commands.env import PACKAGE, installed
from modeling_small4.commands.terminal import add_expert_memory, describe_bytes
from modeling_small4.files_saving import MANIFEST

from . import hub, manifest
from .against import RULE, Fault
from .checkpoint import CheckpointError
from .checks import files, numbers, questions, read_back, running, texts
from .checks.answers import Question, answer_rows, read_questions
from .checks.rows import ALONE, BY_MANIFEST, FAILED, SKIPPED, Row, table, tried
from .console import progress_bar
from .convert import Options, convert
from .manifest import Manifest
from .naming import leaves
from .source import Checkpoint
from .staging import write_file

VERSION = 1
SMALL = 4 * 10**9  # bytes of a checkpoint that is converted to a temporary folder if it cannot be loaded as it is
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckOptions:
    """What is checked, and with what."""

    quick: bool = False
    run: bool = True
    manifest: Path | None = None
    prompts: list[Question] | None = None
    text: str | None = None
    expert_memory: str | None = None


@dataclass
class Report:
    """All rows, and what a reader of the table has to know."""

    model: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether any check has failed."""
        return any(row.status == FAILED for row in self.rows)

    def text(self) -> str:
        """The table."""
        wrong = sum(row.status == FAILED for row in self.rows)
        end = f"{wrong} of {len(self.rows)} checks FAILED" if wrong else "nothing wrong was found"
        return "\n".join([table(self.rows), "", *self.notes, f"{self.model}: {end} ({self.seconds:.0f} s)"])

    def content(self) -> dict[str, Any]:
        """The JSON file."""
        versions = {PACKAGE: installed(PACKAGE), "torch": torch.__version__, "transformers": transformers.__version__}
        return {
            "format": "small4-check",
            "version": VERSION,
            "model": self.model,
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
            "machine": {"system": platform.system(), "processor": platform.machine()},
            "versions": versions | {"python": platform.python_version()},
            "checks": [row.content() for row in self.rows],
            "notes": self.notes,
            "found_by_reading_alone": list(ALONE),
            "found_with_a_manifest_only": list(BY_MANIFEST),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 check`."""
    parser.add_argument("model", metavar="MODEL", help="a folder or a Hub repository, in any layout")
    parser.add_argument("--quick", action="store_true", help="read headers and samples only, and do not run the model")
    parser.add_argument("--no-run", action="store_true", help="read everything, but do not run the model")
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        type=Path,
        help=f"the manifest of what it has to be (default: {MANIFEST} in MODEL)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="JSON with prompts and answers (default: facts, for the real model)",
    )
    parser.add_argument(
        "--text", metavar="FILE", type=Path, help="a text, whose perplexity tells which softmax scale is right"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything that was found to this file")
    parser.add_argument(
        "--revision", help="branch, tag or commit of a repository on the Hub (default: its main branch)"
    )
    add_expert_memory(parser)


def run(args: argparse.Namespace) -> int:
    """Run `small4 check`; returns 1 if something failed, else 0.

    Raises:
        ValueError, OSError: No such checkpoint; a file of prompts, text or manifest that cannot be read.
    """
    options = CheckOptions(
        args.quick,
        not args.no_run,
        args.manifest,
        read_questions(args.prompts) if args.prompts else None,
        _read_text(args.text) if args.text else None,
        args.expert_memory,
    )
    if args.json is not None and (args.json.is_dir() or not args.json.resolve().parent.is_dir()):
        raise CheckpointError(f"{args.json}: is no file that can be written; name one in a folder that is there")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    notes: list[str] = []
    folder = hub.resolve(args.model, notes.append, args.revision, as_loaded=True)
    with progress_bar("reading") as progress:
        report = check(folder, options, progress, args.model.rstrip("/").rpartition("/")[2])
    report.notes[:0] = notes
    print(report.text())
    if args.json is not None:
        write_file(args.json, json.dumps(report.content(), indent=1, ensure_ascii=False) + "\n", "a report")
    return 1 if report.failed else 0


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{file}: is no text in UTF-8") from None


def check(
    folder: Path,
    options: CheckOptions | None = None,
    progress: Progress = lambda done, total: None,
    name: str | None = None,
) -> Report:
    """Check a checkpoint folder, which the report calls `name`.

    progress: called with the bytes of numbers read and in all.

    Raises:
        CheckpointError: The manifest that was named cannot be read.
    """
    options = options or CheckOptions()
    begin = time.perf_counter()
    report = Report(name or folder.resolve().name)
    given, told = _manifest(folder, options)
    report.rows += told
    source, rows = files.opened(folder)
    report.rows += rows
    if source is not None:
        report.notes += source.remarks
        if given is not None:
            source = manifest.reopened(source, given.model.get(RULE))
        report.rows += tried("configuration", lambda: [files.configuration(source)])
        report.rows += tried("numbers", lambda: list(numbers.number_rows(source, given, options.quick, progress)))
        report.rows += tried("tokenizer", lambda: texts.text_rows(source))
        if options.quick:
            report.notes.append("--quick: read headers and samples only; the model was not run")
        else:
            report.rows += tried("read back", lambda: [read_back.read_back(source)])
            if options.run:
                report.rows += tried("load", lambda: list(_running(folder, source, options, report.failed)))
    if given is None:
        report.notes += ["Without a manifest these are found:", *(f"  - {each}" for each in ALONE)]
        report.notes += ["Only with one (small4 manifest of a copy you trust, --manifest):"]
        report.notes += [f"  - {each}" for each in BY_MANIFEST]
    report.seconds = time.perf_counter() - begin
    return report


def _manifest(folder: Path, options: CheckOptions) -> tuple[Manifest | None, list[Row]]:
    """The manifest to compare with, and a row where the folder's own cannot be read."""
    if options.manifest is not None:
        return manifest.read(options.manifest), []
    try:
        return (manifest.of_folder(folder) if folder.is_dir() else None), []
    except CheckpointError as error:
        return None, [Row("manifest", FAILED, "cannot be read", [Fault("manifest", MANIFEST, str(error))])]


def _running(folder: Path, source: Checkpoint, options: CheckOptions, failed: bool) -> Iterator[Row]:
    """The rows about the model that runs. A checkpoint that cannot be loaded as it is is converted if it is small."""
    names = {entry.name for entry in source.folder.iterdir()}
    if "tokenizer.json" not in names and "tekken.json" not in names:
        yield Row("load", SKIPPED, "the folder holds no tokenizer, so the model is not run")
        return
    if source.layout in ("small4", "transformers") and "tokenizer.json" in names:
        yield from _run_model(source.folder, source, options)
        return
    parts = [part.body for value in source.values.values() for part in value.inner()]
    size = sum(body.nbytes for body in parts)
    if size > SMALL:
        advice = f"small4 convert {folder.name} DST, then small4 check DST"
        yield Row(
            "load", SKIPPED, f"a {source.layout} checkpoint of {describe_bytes(size)} is converted first: {advice}"
        )
        return
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "converted"
        try:
            convert(folder, made, Options(manifest=False, as_loaded=True))
        except (ValueError, OSError) as error:
            fault = Fault("load", folder.name, str(error))
            yield (
                Row("load", SKIPPED, "not run: see above") if failed else Row("load", FAILED, "not converted", [fault])
            )
            return
        yield from _run_model(made, source, options)


def _run_model(folder: Path, source: Checkpoint, options: CheckOptions) -> Iterator[Row]:
    found, row = running.loaded(folder, options.expert_memory)
    yield row
    if found is None:
        return
    ran = running.runs(found)
    yield ran
    if ran.status == FAILED:
        return
    asked = options.prompts
    if asked is None and sum(math.prod(leaf.shape) for leaf in leaves(source.config)) >= questions.SMALLEST:
        asked = questions.QUESTIONS
    if asked is None:
        yield Row("answers", SKIPPED, "the model is too small for facts; --prompts FILE brings other prompts")
    else:
        yield from answer_rows(found, asked)
    if options.text is None:
        yield Row("softmax scale", SKIPPED, "no text (--text FILE) whose perplexity could tell")
    else:
        yield running.softmax_scale(found, options.text)
    yield running.beside_the_planner(found, source, ran)
