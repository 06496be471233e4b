"""`small4 manifest`: one JSON file that says what a checkpoint holds, by a hash of the real value of every tensor.

Raw, transformers and our layout of the same weights have the same manifest: one entry for each tensor of the raw
layout, under its name there, each expert by itself. An entry's `value` is the hash of the numbers that a model computes
with after loading: plain ones as they are, quantized ones as bfloat16, as bfloat16 bytes where all of them are bfloat16
numbers, else as float32; so an expanded copy of a quantized checkpoint has the same values. `parts` are the hashes of
the codes and scales of a quantized weight, in which each bit counts. A quantized copy says under `copy_of` of which
weights it is a copy, and how far each of its tensors is from them.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from modeling_small4.files_reading import shown
from modeling_small4.files_saving import MANIFEST, MANIFEST_FORMAT

from . import hub
from .checkpoint import CheckpointError, Reader, read_json
from .console import add_json, progress_bar
from .digest import Measured, measure
from .naming import Leaf, leaves
from .raw import facts
from .source import Checkpoint, open_checkpoint
from .staging import write_file
from .vocabulary import read_vocabulary

VERSION = 1
Progress = Callable[[int, int], None]
_HEX = 64


@dataclass(frozen=True)
class Entry:
    """One tensor. dtype: the narrower of bfloat16 and float32 that holds its numbers. rms: root-mean-square, 6 digits.

    rows: of a router, the first 8 digits of the hash of each expert's row in float32.
    """

    shape: tuple[int, ...]
    dtype: str
    value: str
    rms: float
    parts: dict[str, str] = field(default_factory=dict)
    rows: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Measured) -> "Entry":
        """The entry of a weight that was read."""
        return cls(found.shape, found.dtype, found.value, float(f"{found.rms:.6g}"), found.parts, found.rows)

    def content(self) -> dict[str, Any]:
        """Its JSON, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value not in ({}, ())}


@dataclass(frozen=True)
class Origin:
    """The weights that a quantized checkpoint is a copy of: their hash and precision, and the relative root-mean-square
    error of each quantized tensor.
    """

    weights: str
    precision: str
    errors: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Args:
        precision: How weights are stored, "fp8", "BF16", ...
        model: The configuration values that decide what the model computes, by their path.
        tokenizer: Number of tokens, the hash of all of them, and that of the rules by which texts become tokens (not in
            older manifests); None where the folder has no tokenizer.
        tensors: By the raw layout's names.
        input_scales: Static scales of the inputs of quantized layers.
        copy_of: For a quantized copy, of what.
    """

    precision: str
    model: dict[str, Any]
    tokenizer: dict[str, int | str] | None
    tensors: dict[str, Entry]
    input_scales: dict[str, float] = field(default_factory=dict)
    copy_of: Origin | None = None

    @property
    def weights(self) -> str:
        """The hash of all values: equal for two checkpoints whose models compute with the same numbers."""
        lines = (f"{name} {e.dtype} {list(e.shape)} {e.value}\n" for name, e in sorted(self.tensors.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def text(self) -> str:
        """The JSON file: one line for each tensor."""
        head = {
            "format": MANIFEST_FORMAT,
            "version": VERSION,
            "weights": self.weights,
            "precision": self.precision,
            "copy_of": self.copy_of and asdict(self.copy_of),
            "model": self.model,
            "tokenizer": self.tokenizer,
            "input_scales": self.input_scales,
        }
        entries = (f"{json.dumps(name)}: {json.dumps(entry.content())}" for name, entry in self.tensors.items())
        parts = [f'"{key}": {json.dumps(value, indent=1)}' for key, value in head.items() if value not in (None, {})]
        return "{\n" + ",\n".join([*parts, '"tensors": {\n' + ",\n".join(entries) + "\n}"]) + "\n}\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 manifest`."""
    parser.add_argument("folder", metavar="FOLDER", help="a folder, a GGUF file or a repository on the Hub")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"the file to write (default: {MANIFEST} in FOLDER); - prints it"
    )
    parser.add_argument(
        "--softmax-scale",
        choices=("released", "transformers"),
        help="how a transformers folder's mscale keys are read, as for small4 convert",
    )
    parser.add_argument(
        "--revision", help="branch, tag or commit of a repository on the Hub (default: its main branch)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run `small4 manifest`; returns 0.

    Raises:
        ValueError, OSError: What `build` and `write` raise, or no place to write to.
    """
    notes: list[str] = []
    folder = hub.resolve(args.folder, notes.append, args.revision, as_loaded=True)
    out = args.out or (folder / MANIFEST if folder.is_dir() and Path(args.folder).exists() else None)
    if out is None:
        raise CheckpointError(f"{args.folder}: is no folder here; say where to write the manifest with --out FILE")
    printed = str(out) == "-"
    former = None if printed else _former(out)
    with progress_bar("reading") as progress, Reader() as reader:
        source = open_checkpoint(folder, args.softmax_scale, as_loaded=True)
        manifest = build(source, reader, progress)
    for note in (*notes, *source.remarks):
        print(note, file=sys.stderr if printed or args.json else sys.stdout)
    if former is not None and former.weights == manifest.weights:
        manifest = replace(manifest, copy_of=former.copy_of)
    if printed:
        print(manifest.text(), end="")
        return 0
    write(manifest, out)
    stale = former is not None and former.weights != manifest.weights
    if args.json:
        told = {"file": str(out), "tensors": len(manifest.tensors), "precision": manifest.precision}
        print(json.dumps(told | {"weights": manifest.weights, "replaced_other_weights": stale}))
        return 0
    if former is not None and stale:
        print(f"{out}: the manifest that was there is of other weights ({former.weights[:16]}); it is replaced")
    print(f"{out}: {len(manifest.tensors)} tensors, {manifest.precision}, weights {manifest.weights[:16]}")
    return 0


def build(
    source: Checkpoint,
    reader: Reader,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Read every tensor of a checkpoint once. progress: called with the bytes of numbers done and in all.

    Raises:
        CheckpointError: A tensor cannot be read.
    """
    table = [leaf for leaf in leaves(source.config) if leaf.raw in source.values]
    total, done = sum(math.prod(leaf.shape) for leaf in table) * 2, 0
    found: dict[str, Measured] = {}
    for leaf in table:
        found[leaf.raw] = measure_leaf(source, leaf, reader)
        done += math.prod(leaf.shape) * 2
        progress(done, total)
    return of_measured(source, found)


def measure_leaf(source: Checkpoint, leaf: Leaf, reader: Reader) -> Measured:
    """What a manifest says of one tensor of a checkpoint."""
    router = leaf.raw.endswith(".gate.weight")
    return measure(source.values[leaf.raw], leaf, source.interleaved, reader, rows=router)


def of_measured(source: Checkpoint, found: dict[str, Measured]) -> Manifest:
    """The manifest of a checkpoint whose tensors were read. Raises CheckpointError for an input scale that is not
    finite.
    """
    for name, each in found.items():
        if each.input_scale is not None and not math.isfinite(each.input_scale):
            raise CheckpointError(f"{source.folder}: the input scale of {name} is not finite; the file is damaged")
    words = read_vocabulary(source.folder, tekken=source.layout == "mistral")
    return Manifest(
        source.precision(),
        facts(source.config),
        {"tokens": words.tokens, "sha256": words.sha256, "rules": words.rules} if words else None,
        {name: Entry.of(each) for name, each in found.items()},
        {name: each.input_scale for name, each in found.items() if each.input_scale is not None},
    )


def write(manifest: Manifest, file: Path) -> None:
    """Write the file, whole or not at all. Another manifest is replaced.

    Raises:
        CheckpointError: There is something else of that name.
        OSError: The disk is full or fails.
    """
    _former(file)
    write_file(file, manifest.text(), "a manifest")


def read(file: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        CheckpointError: It is no manifest, or of a later version.
    """
    content = read_json(file)
    if content.get("format") != MANIFEST_FORMAT:
        raise CheckpointError(f"{file}: is no manifest of a checkpoint (small4 manifest writes one)")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: is a manifest of version {shown(content.get('version'))}; this program reads {VERSION}"
        )
    try:
        out = _read(content)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{file}: the manifest is damaged ({type(error).__name__}: {error})") from None
    if out.weights != content.get("weights"):
        raise CheckpointError(f"{file}: the manifest is damaged: its entries are not those of its weights' hash")
    return out


def of_folder(folder: Path) -> Manifest | None:
    """The manifest that a checkpoint folder holds, None where it has none. Raises what `read` raises."""
    file = folder / MANIFEST
    return read(file) if file.is_file() else None


def reopened(source: Checkpoint, rule: str | None) -> Checkpoint:
    """The checkpoint with its softmax scale read by the rule that a manifest names, where the files leave it open: in
    transformers' layout.
    """
    if source.layout != "transformers" or rule not in ("released", "transformers"):
        return source
    return open_checkpoint(source.folder, rule, strict=False, as_loaded=True)


def _read(content: dict[str, Any]) -> Manifest:
    tensors = {}
    for name, entry in content["tensors"].items():
        shape, parts, rows = tuple(entry["shape"]), dict(entry.get("parts", {})), tuple(entry.get("rows", ()))
        if not all(isinstance(h, str) and len(h) == _HEX for h in (entry["value"], *parts.values())):
            raise ValueError(f"{name} has no hash of {_HEX} digits")
        if not all(type(n) is int for n in shape) or not all(isinstance(row, str) for row in rows):
            raise ValueError(f"{name} has a wrong entry")
        tensors[str(name)] = Entry(shape, str(entry["dtype"]), entry["value"], float(entry["rms"]), parts, rows)
    origin, words = content.get("copy_of"), content.get("tokenizer")
    rules = {"rules": str(words["rules"])} if words and "rules" in words else {}
    return Manifest(
        str(content["precision"]),
        dict(content["model"]),
        {"tokens": int(words["tokens"]), "sha256": str(words["sha256"]), **rules} if words else None,
        tensors,
        {str(name): float(scale) for name, scale in content.get("input_scales", {}).items()},
        Origin(str(origin["weights"]), str(origin["precision"]), dict(origin["errors"])) if origin else None,
    )


def _former(file: Path) -> Manifest | None:
    """The manifest that is about to be replaced; None where there is nothing, or one that is damaged or of another
    version.
    """
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise CheckpointError(f"{file}: is no file that a manifest can replace; choose another name")
    if not file.exists():
        return None
    try:
        ours = read_json(file).get("format") == MANIFEST_FORMAT
    except CheckpointError:
        ours = False
    if not ours:
        raise CheckpointError(f"{file}: exists and is no manifest; choose another name with --out")
    try:
        return read(file)
    except CheckpointError:
        return None


def of_copy(written: Path, source: Checkpoint, lossy: bool, errors: dict[str, float], progress: Progress) -> Manifest:
    """The manifest of the folder `written`, to which `source` was converted, read back from disk.

    lossy: whether numbers may have been rounded; then the source is read too, to say of which weights this is a copy.
    errors: of quantized tensors, by raw name.

    Raises:
        CheckpointError: What was written cannot be read.
    """
    with Reader() as reader:
        made = build(reopened(open_checkpoint(written), source.config.text_config.softmax_scale_rule), reader, progress)
        if not lossy:
            former = _trusted(source)
            return replace(made, copy_of=former.copy_of if former and former.weights == made.weights else None)
        origin = build(source, reader)
    if origin.weights == made.weights:
        return made
    return replace(made, copy_of=Origin(origin.weights, origin.precision, errors))


def _trusted(source: Checkpoint) -> Manifest | None:
    try:
        return of_folder(source.folder)
    except CheckpointError:  # it is told by `small4 check`; a conversion does not need it
        return None
