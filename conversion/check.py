"""`small4 check`: everything that can be found wrong with a checkpoint in one evening, in one table and one JSON file.

Reads each tensor once and holds it against a manifest where there is one, and against others of its kind; then tries
tokenizer, template, another layout, and the model itself. What is checked is in `checks/`. Writes nothing but the file
of `--json` and temporary folders.
"""

import argparse
import json
import math
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from .against import RULE, Fault, said_faults, tensor_faults
from .checkpoint import CheckpointError, Reader
from .checks import files, questions, read_back, running, texts, weights
from .checks.answers import Question, answer_rows, read_questions
from .checks.rows import ALONE, BY_MANIFEST, FAILED, SKIPPED, Row, judged, table
from .console import progress_bar
from .convert import Options, convert
from .digest import Measured
from .manifest import Manifest
from .naming import Leaf, leaves
from .source import Checkpoint

VERSION = 1
SMALL = 4 * 10**9  # bytes of a checkpoint that is converted to a temporary folder if it cannot be loaded as it is
_NOT_READ_BACK = Row("read back", SKIPPED, "not tried: the headers are wrong")
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
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = hub.resolve(args.model, lambda _: None, args.revision)
    with progress_bar("reading") as progress:
        report = check(folder, options, progress)
    print(report.text())
    if args.json is not None:
        args.json.write_text(json.dumps(report.content(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if report.failed else 0


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{file}: is no text in UTF-8") from None


def check(folder: Path, options: CheckOptions | None = None, progress: Progress = lambda done, total: None) -> Report:
    """Check a checkpoint folder.

    progress: called with the bytes of numbers read and in all.

    Raises:
        CheckpointError: The manifest that was named cannot be read.
    """
    options = options or CheckOptions()
    begin = time.perf_counter()
    report = Report(folder.name)
    given, told = _manifest(folder, options)
    report.rows += told
    source, rows = files.opened(folder)
    report.rows += rows
    if source is not None:
        if given is not None:
            source = manifest.reopened(source, given.model.get(RULE))
        report.rows.append(files.configuration(source))
        report.rows += _weights(source, given, options.quick, progress)
        report.rows += texts.text_rows(source)
        if options.quick:
            report.notes.append("--quick: read headers and samples only; the model was not run")
        else:
            report.rows.append(read_back.read_back(source) if not source.problems else _NOT_READ_BACK)
            if options.run:
                report.rows += _running(source, options, report.failed)
    if given is None:
        about = (
            "There is no manifest. What has been looked for without one is listed in the guide; these are not found:"
        )
        report.notes += [about, *(f"  - {each}" for each in BY_MANIFEST)]
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


def _weights(source: Checkpoint, given: Manifest | None, quick: bool, progress: Progress) -> Iterator[Row]:
    """The rows about numbers: by themselves, and against the manifest."""
    table_of = {leaf.raw: leaf for leaf in leaves(source.config)}
    chosen = [leaf for leaf in table_of.values() if leaf.raw in source.values]
    if quick:
        chosen = _sample(chosen)
    total, done = sum(math.prod(leaf.shape) * 2 for leaf in chosen), 0
    found: dict[str, Measured] = {}
    unread: list[Fault] = []
    with Reader() as reader:
        for leaf in chosen:
            try:
                found[leaf.raw] = manifest.measure_leaf(source, leaf, reader)
            except CheckpointError as error:
                kind = "not finite" if "not finite" in str(error) else "unreadable"
                unread.append(Fault(kind, leaf.raw, str(error)))
            done += math.prod(leaf.shape) * 2
            progress(done, total)
        count = f"{len(found)} of {len(source.values)} tensors read" if quick else f"{len(found)} tensors read"
        summary = f"{count}: finite, in range, no expert dead or twice"
        yield judged("numbers", unread + weights.faults_of(found, table_of), summary, _statistics(found))
        if given is None:
            yield Row("manifest", SKIPPED, f"there is none (small4 manifest {source.folder.name} writes one)")
            return
        faults = [*said_faults(source, given), *tensor_faults(source, found, given, reader)]
    yield _against(source, given, faults, len(found))


def _against(source: Checkpoint, given: Manifest, faults: list[Fault], count: int) -> Row:
    """The row about the manifest. A quantized copy differs in what was quantized from the manifest of its source."""
    summary = f"{count} tensors are what the manifest says ({given.weights[:16]})"
    own = None
    with suppress(CheckpointError):
        own = manifest.of_folder(source.folder)
    data: dict[str, Any] = {"weights": given.weights}
    if own is not None and own.copy_of is not None:
        mean = sum(own.copy_of.errors.values()) / max(1, len(own.copy_of.errors))
        data["copy_of"] = own.copy_of.weights
        summary += f"; an {own.precision} copy of {own.copy_of.weights[:16]}, mean error {mean:.4f}"
        if own.weights != given.weights and own.copy_of.weights == given.weights:
            faults = [fault for fault in faults if fault.kind != "precision"]
    return judged("manifest", faults, summary, data)


def _sample(table_of: list[Leaf]) -> list[Leaf]:
    """Norms and routers, and of each layer a few matrices and experts, the same ones each time."""
    draw = random.Random(0)
    small = [leaf for leaf in table_of if len(leaf.shape) == 1 or leaf.raw.endswith(".gate.weight")]
    layers: dict[str, list[Leaf]] = {}
    for leaf in table_of:
        if len(leaf.shape) == 2 and ".layers." in f".{leaf.raw}" and leaf not in small:
            layers.setdefault(leaf.raw.split("layers.")[0] + leaf.raw.split("layers.")[1].split(".")[0], []).append(
                leaf
            )
    chosen = {leaf.raw for leaf in small}
    for each in layers.values():
        chosen |= {leaf.raw for leaf in draw.sample(each, min(8, len(each)))}
    return [leaf for leaf in table_of if leaf.raw in chosen]


def _statistics(found: dict[str, Measured]) -> dict[str, Any]:
    """Size and range of each kind of tensor, for the JSON file."""
    kinds: dict[str, list[Measured]] = {}
    for name, each in found.items():
        kinds.setdefault(weights.kind_of(name), []).append(each)
    return {
        kind: {
            "tensors": len(members),
            "rms": [min(m.rms for m in members), max(m.rms for m in members)],
            "range": [min(m.least for m in members), max(m.most for m in members)],
        }
        for kind, members in kinds.items()
        if all(math.isfinite(m.least) and math.isfinite(m.most) for m in members)
    }


def _running(source: Checkpoint, options: CheckOptions, failed: bool) -> Iterator[Row]:
    """The rows about the model that runs. A checkpoint that cannot be loaded as it is is converted if it is small."""
    names = {entry.name for entry in source.folder.iterdir()}
    if "tokenizer.json" not in names and "tekken.json" not in names:
        yield Row("load", SKIPPED, "the folder holds no tokenizer, so the model is not run")
        return
    if source.layout in ("small4", "transformers") and "tokenizer.json" in names:
        yield from _run_model(source.folder, source, options)
        return
    size = sum(entry.stat().st_size for entry in source.folder.iterdir() if entry.is_file())
    if size > SMALL:
        advice = f"small4 convert {source.folder.name} DST, then small4 check DST"
        yield Row("load", SKIPPED, f"a {source.layout} folder of {describe_bytes(size)} is converted first: {advice}")
        return
    with tempfile.TemporaryDirectory() as place:
        try:
            convert(source.folder, Path(place) / source.folder.name, Options(manifest=False))
        except (ValueError, OSError) as error:
            reason = Fault("load", source.folder.name, str(error))
            yield (
                Row("load", SKIPPED, "not run: see above") if failed else Row("load", FAILED, "not converted", [reason])
            )
            return
        yield from _run_model(Path(place) / source.folder.name, source, options)


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
