"""`small4 check`: what it says of numbers that are wrong, and which odd ones are sound."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoint_faults as cf
import pytest
import raw_checkpoint as rc
import torch
from checked_releases import OURS, Bench, found, scale_twice
from conversion_cases import run
from safetensors.torch import save_file
from small4_conversion.check import CheckOptions, check
from small4_conversion.checkpoint import Reader, read_headers
from small4_conversion.checks.weights import faults_of
from small4_conversion.digest import measure
from small4_conversion.formats.values import Plain
from small4_conversion.naming import Leaf

from modeling_small4.files_saving import MANIFEST


def test_a_scale_that_is_applied_twice_is_called_so(releases: dict[str, Path], tmp_path: Path) -> None:
    for form in ("fp8", "nvfp4"):
        folder = shutil.copytree(releases[form], tmp_path / form)
        scale_twice(Bench(folder, form, random.Random(0)))
        assert any("is applied twice" in text for _, text in found(folder)), form


@pytest.mark.parametrize("scale", ["twice", "missing"])
def test_scales_that_are_all_wrong_are_found(releases: dict[str, Path], tmp_path: Path, scale: str) -> None:
    folder = shutil.copytree(releases["fp8"], tmp_path / "fp8")
    (folder / MANIFEST).unlink()
    scales = {name: each for name, each in cf.load(folder).items() if name.endswith(".qscale_weight")}
    cf.change(folder, {n: each * each if scale == "twice" else torch.ones_like(each) for n, each in scales.items()})
    assert [kind for kind, _ in found(folder)] == ["scale"]


@pytest.mark.parametrize("name", ["tok_embeddings", "output", "vision_language_adapter.w_out"])
def test_a_single_matrix_that_is_far_too_large_is_found(releases: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(releases["bf16"], tmp_path / "bf16")
    (folder / MANIFEST).unlink()
    Bench(folder, "bf16", random.Random(0)).change(f"{name}.weight", lambda x: x * 1000)
    assert [(kind, name in text) for kind, text in found(folder)] == [("scale", True)]


def first_rows_are_zero(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(x[: len(x) // 2]), x[len(x) // 2 :]])


HOLES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "half": ("layers.0.attention.wo.weight", first_rows_are_zero),
    "half a head": ("output.weight", first_rows_are_zero),
    "rows": ("vision_language_adapter.w_in.weight", lambda x: x[:1].expand_as(x)),
    "columns": ("layers.1.experts.2.w2.weight", lambda x: x[:, :1].expand_as(x)),
    "constant": ("layers.1.attention.wkv_b.weight", lambda x: torch.full_like(x, 0.125)),
}


@pytest.mark.parametrize("case", HOLES)
def test_rows_of_zeros_and_rows_that_are_alike_are_found(releases: dict[str, Path], tmp_path: Path, case: str) -> None:
    folder = shutil.copytree(releases["bf16"], tmp_path / "bf16")
    (folder / MANIFEST).unlink()
    name, turn = HOLES[case]
    Bench(folder, "bf16", random.Random(0)).change(name, turn)
    kind = "zeros" if "half" in case else "dead tensor"
    assert [(kind, name in text) for kind, text in found(folder)] == [(kind, True)]


@pytest.mark.parametrize("kibibytes", [0, 16, 64])
def test_a_hole_in_a_file_begins_anywhere(tmp_path: Path, kibibytes: int) -> None:
    name, shape = "layers.0.attention.wo.weight", (96, 4096)
    save_file({name: torch.randn(shape).bfloat16()}, tmp_path / "x.safetensors")
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    content[100_000 : 100_000 + kibibytes * 1024] = bytes(kibibytes * 1024)
    (tmp_path / "x.safetensors").write_bytes(content)
    with Reader() as reader:
        leaf = Leaf(name, name, shape, linear=True)
        measured = measure(Plain(shape, read_headers([tmp_path / "x.safetensors"])[name]), leaf, True, reader)
    assert [fault.kind for fault in faults_of({name: measured}, {name: leaf})] == ["zeros"] * (kibibytes == 64)


def test_tokens_that_are_never_used_and_dead_neurons_may_be_zero(releases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(releases["bf16"], tmp_path / "bf16")
    (folder / MANIFEST).unlink()
    bench = Bench(folder, "bf16", random.Random(0))
    for name in ("tok_embeddings.weight", "output.weight"):
        bench.change(name, first_rows_are_zero)
    bench.change("layers.0.experts.1.w1.weight", lambda x: torch.where(torch.arange(len(x))[:, None] % 5 > 1, x, 0))
    assert found(folder) == []


def swapped_in_fused(x: torch.Tensor) -> torch.Tensor:
    return x[[0, 3, 2, 1]]


FUSED: dict[str, tuple[dict[str, Callable[[torch.Tensor], torch.Tensor]], str, str]] = {
    "experts": (
        {f"{OURS}0.mlp.experts.{name}": swapped_in_fused for name in ("gate_up_proj", "down_proj")},
        "swapped experts",
        "layers.0.experts.1 and layers.0.experts.3",
    ),
    "gate and up": (
        {f"{OURS}1.mlp.experts.gate_up_proj": lambda x: torch.cat([x[:, 32:], x[:, :32]], dim=1)},
        "swapped tensors",
        "layers.1.experts.2.w1.weight and layers.1.experts.2.w3.weight",
    ),
    "dead": (
        {f"{OURS}1.mlp.experts.down_proj": lambda x: torch.cat([x[:2], torch.zeros_like(x[2:3]), x[3:]])},
        "dead expert",
        "layers.1.experts.2.w2.weight",
    ),
    "router": ({f"{OURS}1.mlp.gate.weight": lambda x: x.flip(0)}, "permuted rows", "layers.1.gate.weight"),
    "vision": (
        {"model.vision_tower.transformer.layers.0.attention.q_proj.weight": lambda x: rc.halves(x, 2)},
        "rope pairing",
        "vision_encoder.transformer.layers.0.attention.wq.weight",
    ),
    "negated": ({f"{OURS}0.self_attn.o_proj.weight": lambda x: -x}, "negated", "layers.0.attention.wo.weight"),
}


@pytest.mark.parametrize("layout", ["small4", "transformers"])
@pytest.mark.parametrize("case", FUSED)
def test_faults_in_fused_layouts(fused: dict[str, Path], tmp_path: Path, layout: str, case: str) -> None:
    shutil.copytree(fused[layout], tmp_path / "out")
    turns, kind, where = FUSED[case]
    tensors = cf.load(tmp_path / "out")
    cf.change(tmp_path / "out", {name: turn(tensors[name]).contiguous() for name, turn in turns.items()})
    assert any(one == kind and where in text for one, text in found(tmp_path / "out")), found(tmp_path / "out")


def interleaved(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, :32], x[:, 32:]], dim=2).reshape(x.shape)


OTHER_NUMBERS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "interleaved": (f"{OURS}1.mlp.experts.gate_up_proj", interleaved, "layers.1.experts.0.w1.weight"),
    "transposed": (
        f"{OURS}1.mlp.experts.gate_up_proj",
        lambda x: x.mT.reshape(x.shape),
        "layers.1.experts.3.w3.weight: numbers are",
    ),
    "half a head": ("lm_head.weight", lambda x: torch.cat([x[:550], 0 * x[550:]]), "output.weight"),
    "router": (
        f"{OURS}0.mlp.gate.weight",
        lambda x: x * torch.tensor([[1], [1], [0], [1]]),
        "layers.0.gate.weight: all is right but the rows of these experts: 2",
    ),
    "larger": (f"{OURS}0.self_attn.o_proj.weight", lambda x: x * 1.1, "in size 1.1 times the right ones"),
}


@pytest.mark.parametrize("case", OTHER_NUMBERS)
def test_other_numbers_are_not_called_a_scale(fused: dict[str, Path], tmp_path: Path, case: str) -> None:
    shutil.copytree(fused["small4"], tmp_path / "out")
    name, turn, says = OTHER_NUMBERS[case]
    cf.change(tmp_path / "out", {name: turn(cf.load(tmp_path / "out")[name]).to(torch.bfloat16).contiguous()})
    manifest_row = next(row for row in check(tmp_path / "out", CheckOptions(run=False)).rows if row.check == "manifest")
    assert {fault.kind for fault in manifest_row.faults} == {"changed numbers"}
    assert any(says in str(fault) for fault in manifest_row.faults), manifest_row.faults


@pytest.mark.parametrize("layout", ["small4", "transformers"])
def test_another_number_of_vision_heads_is_no_fault_of_the_tensors(
    fused: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    shutil.copytree(fused[layout], tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    content["vision_config"] |= {"num_attention_heads": 3, "head_dim": 16}
    (tmp_path / "out" / "config.json").write_text(json.dumps(content))
    faults = found(tmp_path / "out")
    assert {kind for kind, _ in faults} == {"configuration"}, faults


def test_a_negative_scale_of_a_group_is_told(fused: dict[str, Path], tmp_path: Path) -> None:
    run(fused["small4"], tmp_path / "int4", dtype="int4")
    name, scale = next((name, each) for name, each in cf.load(tmp_path / "int4").items() if name.endswith("_scale"))
    cf.change(tmp_path / "int4", {name: torch.cat([-scale.flatten()[:1], scale.flatten()[1:]]).view_as(scale)})
    assert [text for _, text in found(tmp_path / "int4") if "its scale not: numbers of the same size" in text]
