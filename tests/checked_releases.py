"""Scaled-down releases for `small4 check`, and what it finds in a folder."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import checkpoint_faults as cf
import raw_checkpoint as rc
import torch
from conversion_cases import CASES
from small4_conversion import manifest
from small4_conversion.check import CheckOptions, check
from small4_conversion.checkpoint import Reader
from small4_conversion.checks.rows import FAILED
from small4_conversion.source import open_checkpoint

from modeling_small4.files_saving import MANIFEST

FORMS = ("bf16", "fp8", "nvfp4")
OURS = "model.language_model.layers."


def release(folder: Path, form: str, seed: int = 0, case: str = "released") -> Path:
    """A scaled-down release of a form, in Mistral's layout."""
    p = rc.params(**CASES[case])
    plain = rc.weights(p, seed)
    if form == "fp8":
        return rc.write_raw(folder, rc.fp8_params(p), rc.to_fp8(plain, seed))
    if form == "nvfp4":
        return rc.write_raw(folder, rc.nvfp4_params(p), rc.to_nvfp4(plain)[0])
    return rc.write_raw(folder, p, plain)


def write_manifest(folder: Path) -> Path:
    with Reader() as reader:
        made = manifest.build(open_checkpoint(folder), reader)
    manifest.write(made, folder / MANIFEST)
    return folder / MANIFEST


@dataclass
class Bench:
    """A checkpoint to be damaged."""

    folder: Path
    form: str
    draw: random.Random

    @property
    def tensors(self) -> rc.Tensors:
        return cf.load(self.folder)

    def swap(self, one: str, other: str) -> None:
        """Swap all tensors whose names begin so."""
        tensors = self.tensors
        changed = {}
        for a, b in ((one, other), (other, one)):
            changed |= {b + name[len(a) :]: tensors[name] for name in tensors if name.startswith(a)}
        cf.change(self.folder, changed)

    def change(self, name: str, turn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change a tensor, in the bytes of its codes where it is FP8."""
        tensor = self.tensors[name]
        if tensor.dtype == torch.float8_e4m3fn:
            cf.change(self.folder, {name: turn(tensor.view(torch.uint8)).contiguous().view(torch.float8_e4m3fn)})
        else:
            cf.change(self.folder, {name: turn(tensor).contiguous()})

    def params(self, **changed: object) -> None:
        file = self.folder / "params.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def expert(layer: int, number: int, part: str = "") -> str:
    return f"layers.{layer}.experts.{number}.{part}"


def scale_twice(b: Bench) -> None:
    if b.form == "fp8":
        b.change("layers.1.attention.wo.qscale_weight", lambda x: x * x)
    elif b.form == "nvfp4":
        b.change(expert(0, 2, "w1.weight_global_scale"), lambda x: x * x)
    else:
        b.change("layers.1.attention.wo.weight", lambda x: x * (x.abs().max() / 448))


def found(folder: Path) -> list[tuple[str, str]]:
    """The kind and the text of each fault."""
    report = check(folder, CheckOptions(run=False))
    assert report.failed == any(row.status == FAILED for row in report.rows)
    assert report.failed == any(row.faults for row in report.rows)
    return [(fault.kind, str(fault)) for row in report.rows for fault in row.faults]
