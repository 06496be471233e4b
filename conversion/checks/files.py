"""What a checkpoint's files say before a number is read: names and sizes, headers, configuration.

Reads headers and configuration files only.
"""

import re
from collections import Counter
from pathlib import Path

from modeling_small4.commands.terminal import describe_bytes
from modeling_small4.files_reading import shown

from .. import raw, transformers_layout
from ..against import RULE, Fault
from ..checkpoint import CheckpointError, read_json
from ..source import Checkpoint, open_checkpoint
from .announced import announced_faults
from .rows import FAILED, OK, TOLD, Row, judged


def opened(folder: Path) -> tuple[Checkpoint | None, list[Row]]:
    """The checkpoint, None where it cannot be opened at all, and the rows about its files and headers."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else [folder]
    sizes = [(file.name, file.stat().st_size) for file in files]
    total = sum(size for _, size in sizes)
    listed = {"files": [{"name": name, "bytes": size} for name, size in sizes]}
    rows = [Row("files", OK, f"{len(sizes)} files, {describe_bytes(total)}", data=listed)]
    try:
        source = open_checkpoint(folder, strict=False, as_loaded=True)
    except CheckpointError as error:
        return None, [*rows, Row("headers", FAILED, "cannot be opened", [_unopened(error, folder)])]
    summary = f"{len(source.values)} tensors, {source.layout} layout, {source.precision()}"
    return source, [*rows, judged("headers", header_faults(source), summary)]


def _unopened(error: CheckpointError, folder: Path) -> Fault:
    what, _, reason = str(error).partition(": ")
    kind = error.kind or ("configuration" if what.endswith(".json") else "damaged file")
    return Fault(kind, Path(what).name or folder.name, reason or str(error))


_KINDS = {
    r"is missing$": "missing tensor",
    r"is not part of the model": "extra tensor",
    r"has shape|is no multiple|has rows": "wrong shape",
    r"^is .*(expected|never quantized|must be one of)": "wrong dtype",
    r"^is quantized|^has one FP8 scale|^has no activation": "quantization",
}


def header_faults(source: Checkpoint) -> list[Fault]:
    """Tensors that are missing, extra, or of another shape or dtype than the configuration says."""
    problems = source.problems
    compared = Counter(match[1] for _, reason in problems if (match := _DTYPES.search(reason)))
    if compared:  # the first tensor was taken as the measure; if most differ from it, it is the odd one
        measure, count = compared.most_common(1)[0]
        if count > 1 and count * 2 > len(source.values) // 2:
            own = next(value.body.dtype for value in source.values.values() if value.body.tensor == measure)
            problems = [each for each in problems if not _DTYPES.search(each[1])]
            problems.append((measure, f"is {own}, but all others are not; one dtype is expected"))
    return [Fault(_kind_of(reason), tensor, reason) for tensor, reason in problems]


_DTYPES = re.compile(r"^is \w+, but (\S+) is \w+; one dtype is expected")


def _kind_of(reason: str) -> str:
    return next((kind for pattern, kind in _KINDS.items() if re.search(pattern, reason)), "header")


def configuration(source: Checkpoint) -> Row:
    """Whether all files that describe the model say the same, and what is stored; and what the softmax scale is."""
    text = source.config.text_config
    facts = raw.facts(source.config)
    faults = []
    for name, others in _other_descriptions(source).items():
        for key, value in facts.items():
            if key in others and others[key] != value:
                kind = "softmax rule" if key == RULE else "configuration"
                reason = f"is {shown(value)} in {source.config_file.name}, but {shown(others[key])} in {name}"
                faults.append(Fault(kind, key, reason))
    faults += announced_faults(source)
    rule = f"softmax scale {text.softmax_scale:.5f} ({text.softmax_scale_rule})"
    row = judged("configuration", faults, rule, {"model": facts, "softmax_scale": text.softmax_scale})
    if row.status == OK and text.softmax_scale_rule != "released":
        about = "; the release has no correction, a text (--text) tells which is right"
        return Row(row.check, TOLD, rule + about, data=row.data)
    return row


def _other_descriptions(source: Checkpoint) -> dict[str, dict[str, object]]:
    """What other files in the folder say about the model: the original params.json, or the second layout's file."""
    out: dict[str, dict[str, object]] = {}
    for name in (raw.KEPT, "params.json", "config.json"):
        file = source.folder / name
        if not source.folder.is_dir() or not file.is_file() or file == source.config_file:
            continue
        try:
            given = read_json(file)
            if name != "config.json":
                out[name] = raw.facts(raw.config_from_params(given, file))
            elif given.get("model_type") in transformers_layout.OUR_TYPES:
                out[name] = raw.facts(raw.build_config(given, file))
            elif given.get("model_type") in transformers_layout.MODEL_TYPES:
                rule = source.config.text_config.softmax_scale_rule
                config, _ = transformers_layout.config_from_transformers(given, rule, True, file)
                out[name] = raw.facts(config)
        except CheckpointError as error:
            out[name] = {key: f"unreadable ({error})" for key in list(raw.facts(source.config))[:1]}
    return out
