"""A few layers written in another layout into a temporary folder, read back and compared: what conversion makes of
this very checkpoint. Takes the room of one layer, with embeddings, head and vision.
"""

import copy
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from modeling_small4.commands.terminal import describe_bytes

from .. import convert, shards, verify
from ..against import Fault
from ..checkpoint import CheckpointError, Reader
from ..manifest import reopened
from ..naming import leaves
from ..plan import Plan, plan
from ..raw import facts
from ..source import Checkpoint, open_checkpoint
from .rows import SKIPPED, Row, judged


def read_back(source: Checkpoint, scratch: Path | None = None) -> Row:
    """Convert the first and the last layer to another layout and compare.

    scratch: where the temporary folder is made; None: where the system has it.
    """
    if source.problems:
        return Row("read back", SKIPPED, "not tried: the headers are wrong")
    count = source.config.text_config.num_hidden_layers
    faults: list[Fault] = []
    tensors, layout = 0, ""
    try:
        for layer in sorted({0, count - 1}):
            part = one_layer(source, layer)
            if missing := [leaf.raw for leaf in leaves(part.config) if leaf.raw not in part.values]:
                return Row("read back", SKIPPED, f"tensors are missing, such as {missing[0]}")
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                done = _there_and_back(part, Path(place))
            if isinstance(done, str):
                return Row("read back", SKIPPED, done)
            report, layout = done
            tensors += report.compared
            faults += [Fault("layout", f"layer {layer}, {d.tensor}", d.reason) for d in report.differences]
    except CheckpointError as error:
        faults.append(Fault("layout", f"layer {layer}", f"cannot be written and read back: {error}"))
    return judged("read back", faults, f"{tensors} tensors written in {layout} layout and read back: equal")


def one_layer(source: Checkpoint, layer: int) -> Checkpoint:
    """The checkpoint as if it had that layer alone."""
    config = copy.deepcopy(source.config)
    text = config.text_config
    text.first_k_dense_replace = int(layer < text.first_k_dense_replace)
    text.num_hidden_layers = 1
    values = {}
    for name, value in source.values.items():
        match = re.match(r"layers\.(\d+)\.", name)
        if match is None:
            values[name] = value
        elif int(match[1]) == layer:
            values[f"layers.0.{name[match.end() :]}"] = value
    return replace(source, config=config, values=values, params=None)


def _there_and_back(part: Checkpoint, place: Path) -> tuple[verify.Report, str] | str:
    """What reading back has shown, and the layout; or why nothing was written."""
    with Reader() as reader:
        made = _planned(part, reader)
        if isinstance(made, str):
            return made
        planned, files = made
        needed = sum(output.nbytes for output in planned.outputs)
        free = shutil.disk_usage(place).free
        if free < needed * 1.1:
            return f"needs {describe_bytes(needed)} of temporary space, {describe_bytes(free)} are free"
        wanted = facts(part.config)
        for name, content in files.items():
            (place / name).write_bytes(content)
        stem = "consolidated" if planned.layout == "mistral" else "model"
        shards.write(place, shards.split(planned.outputs, 5 * 10**9, stem), stem, reader, lambda done: None)
    other = reopened(open_checkpoint(place), part.config.text_config.softmax_scale_rule)
    report = verify.compare_checkpoints([part, other])
    if facts(other.config) != wanted:
        differ = next(key for key, value in wanted.items() if facts(other.config).get(key) != value)
        report.differences.append(verify.Difference("config.json", f"{differ} is not what it was", None))
    return report, planned.layout


def _planned(part: Checkpoint, reader: Reader) -> tuple[Plan, dict[str, bytes]] | str:
    """The plan for another layout, with its configuration files; the reason where no layout can hold this model."""
    why = ""
    for layout in ("mistral", "transformers") if part.layout == "small4" else ("small4",):
        try:
            planned = plan(part, layout, "keep", reader)
            return planned, convert.configuration(planned)
        except CheckpointError as error:
            why = f"cannot be written as {layout}: {error}"
    return why
