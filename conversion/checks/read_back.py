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
from ..naming import leaves
from ..plan import plan
from ..raw import facts
from ..source import Checkpoint, open_checkpoint
from .rows import SKIPPED, Row, judged


def read_back(source: Checkpoint, scratch: Path | None = None) -> Row:
    """Convert the first and the last layer to another layout and compare.

    scratch: where the temporary folder is made; None: where the system has it.
    """
    if source.problems:
        return Row("read back", SKIPPED, "not tried: the headers are wrong")
    layout = "mistral" if source.layout == "small4" else "small4"
    count = source.config.text_config.num_hidden_layers
    faults: list[Fault] = []
    tensors = 0
    try:
        for layer in sorted({0, count - 1}):
            part = one_layer(source, layer)
            if missing := [leaf.raw for leaf in leaves(part.config) if leaf.raw not in part.values]:
                return Row("read back", SKIPPED, f"tensors are missing, such as {missing[0]}")
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                report = _there_and_back(part, layout, Path(place))
            if isinstance(report, str):
                return Row("read back", SKIPPED, report)
            tensors += report.compared
            faults += [Fault("layout", f"layer {layer}, {d.tensor}", d.reason) for d in report.differences]
    except CheckpointError as error:
        faults.append(Fault("layout", f"layer {layer}", f"cannot be written as {layout}: {error}"))
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


def _there_and_back(part: Checkpoint, layout: str, place: Path) -> verify.Report | str:
    with Reader() as reader:
        planned = plan(part, layout, "keep", reader)
        needed = sum(output.nbytes for output in planned.outputs)
        free = shutil.disk_usage(place).free
        if free < needed * 1.1:
            return f"needs {describe_bytes(needed)} of temporary space, {describe_bytes(free)} are free"
        wanted = facts(part.config)
        for name, content in convert.configuration(planned).items():
            (place / name).write_bytes(content)
        stem = "consolidated" if layout == "mistral" else "model"
        shards.write(place, shards.split(planned.outputs, 5 * 10**9, stem), stem, reader, lambda done: None)
    other = open_checkpoint(place)
    report = verify.compare_checkpoints([part, other])
    if facts(other.config) != wanted:
        differ = next(key for key, value in wanted.items() if facts(other.config).get(key) != value)
        report.differences.append(verify.Difference("config.json", f"{differ} is not what it was", None))
    return report
