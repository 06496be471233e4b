"""`small4 convert`: streams a checkpoint of any layout into a folder of another layout, which appears whole or not at
all.

Order of work: read and check everything that can be checked, plan, then write beside the destination and rename. Knows
the files of a folder; names, tensors and configurations are in other files.
"""

import argparse
import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from modeling_small4.commands.terminal import describe_bytes
from modeling_small4.drafts_eagle import Small4EagleDraft
from modeling_small4.drafts_reading import is_draft, read_draft
from modeling_small4.files_reading import shown
from modeling_small4.files_saving import MANIFEST

from . import hub, quantize, raw, shards
from .bundle import copy_code, write_tokenizer
from .checkpoint import CheckpointError, Reader, read_json
from .console import add_json, progress_bar
from .entries import params_entry, quantization_entry
from .llama_cpp import arguments as llama_cpp_arguments
from .manifest import of_copy
from .memory import peak_rss_bytes
from .plan import Plan, plan
from .source import open_checkpoint
from .staging import check_destination, new_folder
from .transformers_layout import transformers_config

LAYOUTS = ("small4", "mistral", "transformers")
PRECISIONS = ("keep", "bfloat16", "float32", *quantize.PRECISIONS)
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Options:
    """How to convert. shard_size is in bytes. softmax_scale None means as the source says, and "released" for
    transformers folders. revision is that of a source on the Hub; None means its main branch. manifest: read back what
    was written and write its manifest beside it. as_loaded: see `open_checkpoint`.
    """

    to: str = "small4"
    dtype: str = "keep"
    softmax_scale: str | None = None
    with_code: bool = False
    overwrite: bool = False
    shard_size: int = 5_000_000_000
    revision: str | None = None
    manifest: bool = True
    as_loaded: bool = False


@dataclass(frozen=True)
class Summary:
    """The result of a conversion. errors: if weights were quantized, the relative error of each, by its raw name."""

    tensors: int
    bytes: int
    seconds: float
    peak_rss_bytes: int
    errors: dict[str, float] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """What `--json` prints."""
        out = asdict(self)
        return out if self.errors else {key: value for key, value in out.items() if key != "errors"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 convert`."""
    parser.add_argument("src", metavar="SRC", help="a folder, a GGUF file or a repository on the Hub")
    parser.add_argument("dst", metavar="DST", type=Path, help="the folder to write; it appears whole or not at all")
    parser.add_argument("--to", choices=LAYOUTS, default="small4", help="layout to write (default: small4)")
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        default="keep",
        help="keep: bit for bit; bfloat16, float32: expanded; fp8, nvfp4, int4: quantized as the releases are",
    )
    parser.add_argument(
        "--softmax-scale",
        choices=("released", "transformers"),
        help="how a transformers folder's mscale keys are read: as the release means them (default), or as "
        "transformers >= 5.15 does",
    )
    parser.add_argument("--with-code", action="store_true", help="carry the model's code, for trust_remote_code=True")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the checkpoint in DST; other files there stay"
    )
    parser.add_argument(
        "--shard-size",
        type=_size,
        default=5_000_000_000,
        metavar="SIZE",
        help="largest output file, such as 5GB or 500MB",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a source on the Hub (default: its main branch)")
    parser.add_argument("--no-manifest", action="store_true", help=f"do not read the result back to write {MANIFEST}")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run `small4 convert`; returns 0.

    Raises:
        ValueError, OSError: What `convert` raises.
    """
    options = Options(
        args.to,
        args.dtype,
        args.softmax_scale,
        args.with_code,
        args.overwrite,
        args.shard_size,
        args.revision,
        not args.no_manifest,
    )
    notes: list[str] = []
    with progress_bar("converting") as progress:
        summary = convert(args.src, args.dst, options, notes.append, progress)
    for note in notes:
        print(note, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(summary.report()))
    else:
        if summary.errors:
            worst = max(summary.errors, key=lambda name: summary.errors[name])
            mean = sum(summary.errors.values()) / len(summary.errors)
            print(
                f"relative error of {len(summary.errors)} quantized tensors: mean {mean:.4f}, largest "
                f"{summary.errors[worst]:.4f} ({worst})"
            )
        rate = describe_bytes(summary.bytes / max(summary.seconds, 1e-9))
        print(
            f"{args.dst}: {summary.tensors} tensors, {describe_bytes(summary.bytes)} in {summary.seconds:.1f} s "
            f"({rate}/s), "
            f"peak memory {describe_bytes(summary.peak_rss_bytes)}"
        )
    return 0


def convert(
    src: str | Path,
    dst: Path,
    options: Options | None = None,
    note: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Convert the checkpoint `src` (a folder or a Hub repository) into the folder `dst`.

    note: called with a sentence for each decision. progress: called with the bytes done and the bytes in all.

    Raises:
        CheckpointError: The source is damaged or cannot be expressed in the target layout, or the destination exists.
            Nothing is left behind.
        OSError: The disk is full or fails. Nothing is left behind.
    """
    options = options or Options()
    if options.with_code and options.to != "small4":
        raise CheckpointError(f"--with-code: only the small4 layout carries code, not {options.to}")
    started = time.perf_counter()
    folder = hub.resolve(str(src), note, options.revision, options.as_loaded)
    check_destination(dst, folder, options.overwrite)
    if is_draft(folder):
        return _convert_draft(folder, dst, options, note, started)
    source = open_checkpoint(folder, options.softmax_scale, as_loaded=options.as_loaded)
    note(f"layout: {source.layout}, {source.precision()} -> {options.to}, {options.dtype}")
    note(f"softmax scale: {source.scale_note}")
    with Reader() as reader:
        planned = plan(source, options.to, options.dtype, reader)
        for remark in [*source.remarks, *sorted(planned.remarks), *_warnings(planned)]:
            note(remark)
        described = configuration(planned)
        _check_space(dst, sum(output.nbytes for output in planned.outputs))
        with _full_disk_named(dst), new_folder(dst, options.overwrite, note) as partial:
            for name, content in described.items():
                (partial / name).write_bytes(content)
            write_tokenizer(source, partial, options.to, note)
            if options.with_code:
                copy_code(partial)
            total = sum(output.nbytes for output in planned.outputs) * (2 if options.manifest else 1)
            written = _write_weights(partial, planned, options.shard_size, reader, lambda done: progress(done, total))
            errors = planned.quantizer.errors if planned.quantizer else {}
            if options.manifest:
                made = of_copy(
                    partial,
                    source,
                    _rounds(planned),
                    errors,
                    lambda done, whole: progress(written.bytes + total // 2 * done // whole, total),
                )
                (partial / MANIFEST).write_text(made.text(), encoding="utf-8")
    return Summary(written.tensors, written.bytes, time.perf_counter() - started, peak_rss_bytes(), errors)


def _convert_draft(folder: Path, dst: Path, options: Options, note: Callable[[str], None], started: float) -> Summary:
    """An EAGLE draft, which is small and has one layout of ours: the one that `generate(draft=...)` loads fastest."""
    if options.to != "small4" or options.dtype not in ("keep", "bfloat16", "float32") or options.with_code:
        raise CheckpointError(
            f"{folder}: is an EAGLE draft; it is converted --to small4, in bfloat16 or float32, without code"
        )
    dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
    try:
        draft = read_draft(str(folder), dtype)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    note(f"layout: EAGLE draft -> small4, {str(dtype).removeprefix('torch.')} (FP8 is expanded)")
    assert isinstance(draft, Small4EagleDraft)
    weights = draft.state_dict()
    with _full_disk_named(dst), new_folder(dst, options.overwrite, note) as partial:
        draft.save_pretrained(partial, max_shard_size=options.shard_size)
    size = sum(weight.nbytes for weight in weights.values())
    return Summary(len(weights), size, time.perf_counter() - started, peak_rss_bytes())


@contextmanager
def _full_disk_named(dst: Path) -> Iterator[None]:
    """Turns the error of a full disk into one that names the destination, whichever file the system named."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            at = f" at {Path(str(error.filename)).name}" if error.filename else ""
            raise CheckpointError(f"{dst}: {error.strerror}{at}; what was written is removed again") from None
        raise


def _write_weights(
    folder: Path, planned: Plan, shard_size: int, reader: Reader, progress: Callable[[int], None]
) -> shards.Written:
    stem = "consolidated" if planned.layout == "mistral" else "model"
    return shards.write(folder, shards.split(planned.outputs, shard_size, stem), stem, reader, progress)


def _rounds(planned: Plan) -> bool:
    """Whether numbers may change: they are quantized, or plain ones are written in a narrower dtype."""
    plain = planned.plain_dtype()
    parts = [part for value in planned.source.values.values() for part in value.inner()]
    return planned.quantizer is not None or (
        plain != "F32" and any(not part.quantized and part.body.dtype != plain for part in parts)
    )


def _warnings(planned: Plan) -> list[str]:
    out = []
    if planned.layout == "transformers" and planned.held:
        out.append(
            "transformers (up to 5.24) drops the experts' scales when it dequantizes FP8 (on CPU and older GPUs), "
            "so its results are wrong; use --dtype bfloat16 for it, or load this folder with modeling_small4"
        )
    config = planned.source.config
    words = llama_cpp_arguments(config) if planned.layout == "transformers" else ""
    if words and config.vision_config is not None:  # it does not know the text-only form
        out.append(f"for llama.cpp, whose converter cannot read all of it: llama-quantize or llama-server {words}")
    return out


def configuration(planned: Plan) -> dict[str, bytes]:
    """The configuration files of the output by name.

    Raises:
        CheckpointError: The target layout cannot express it.
    """
    source, dtype = planned.source, _NAMES[planned.plain_dtype()]
    if planned.layout == "mistral":
        return {"params.json": _params(planned)}
    if planned.layout == "transformers":
        content = transformers_config(source.config, dtype)
    else:
        config = source.config
        config.architectures, config.dtype, config.auto_map = ["Small4ForCausalLM"], dtype, {}
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        content = config.to_diff_dict()
    if entry := quantization_entry(planned):
        content["quantization_config"] = entry
    out = {"config.json": _dump(content)}
    if source.params is not None:
        original = source.folder / ("params.json" if source.layout == "mistral" else raw.KEPT)
        out[raw.KEPT] = original.read_bytes()
    return out


def _params(planned: Plan) -> bytes:
    """params.json: the original's bytes if they still apply, otherwise made from the configuration."""
    source = planned.source
    file = source.folder / ("params.json" if source.layout == "mistral" else raw.KEPT)
    params = raw.params_from_config(source.config, source.params, source.config_file) | params_entry(planned)
    if source.params is not None and params == read_json(file):
        return file.read_bytes()
    return _dump(params)


def _dump(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _check_space(dst: Path, needed: int) -> None:
    parent = next(folder for folder in dst.resolve().parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise CheckpointError(f"{parent}: is not writable")
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise CheckpointError(f"{dst}: needs {describe_bytes(needed)}, but {parent} has {describe_bytes(free)} free")


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a size; write 5GB, 500MB or a number of bytes")
    return max(1, int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " ")))
