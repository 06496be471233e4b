"""`small4 check` on scaled-down releases: faults of many kinds are found and named, and healthy copies pass."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import checkpoint_faults as cf
import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import CASES, run
from safetensors.torch import save_file
from small4_conversion import manifest
from small4_conversion.check import CheckOptions, check
from small4_conversion.checkpoint import Reader, read_headers
from small4_conversion.checks.announced import announced_faults
from small4_conversion.checks.rows import FAILED
from small4_conversion.checks.weights import faults_of
from small4_conversion.digest import measure
from small4_conversion.formats.values import Plain
from small4_conversion.naming import Leaf
from small4_conversion.source import open_checkpoint
from tekken_files import write_tekken
from test_formats_kept import KEPT
from test_formats_kept import made as made_kept

from modeling_small4.commands import cli
from modeling_small4.files_saving import MANIFEST

FORMS = ("bf16", "fp8", "nvfp4")


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


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A release of each form with its manifest. Not to be written into."""
    made = {form: release(tmp_path_factory.mktemp(form) / form, form, seed) for seed, form in enumerate(FORMS)}
    for folder in made.values():
        write_manifest(folder)
    return made


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


def swapped_experts(b: Bench) -> None:
    b.swap(expert(1, 0), expert(1, 2))


def duplicated_expert(b: Bench) -> None:
    kept = b.tensors
    cf.change(
        b.folder,
        {expert(0, 3) + n[len(expert(0, 1)) :]: t.clone() for n, t in kept.items() if n.startswith(expert(0, 1))},
    )


def dead_expert(b: Bench) -> None:
    for name in b.tensors:
        if re.fullmatch(re.escape(expert(1, 1, "w2.weight")) + "(_packed)?", name):
            b.change(name, torch.zeros_like)


def scale_twice(b: Bench) -> None:
    if b.form == "fp8":
        b.change("layers.1.attention.wo.qscale_weight", lambda x: x * x)
    elif b.form == "nvfp4":
        b.change(expert(0, 2, "w1.weight_global_scale"), lambda x: x * x)
    else:
        b.change("layers.1.attention.wo.weight", lambda x: x * (x.abs().max() / 448))


def slightly_wrong_scale(b: Bench) -> None:
    if b.form == "fp8":
        b.change("layers.0.attention.wq_a.qscale_weight", lambda x: x * 1.1)
    elif b.form == "nvfp4":
        b.change(expert(0, 2, "w1.weight_global_scale"), lambda x: x * 1.1)
    else:
        b.change("layers.0.attention.wq_a.weight", lambda x: x * 1.1)


def negative_scale(b: Bench) -> None:
    end = {"fp8": "w3.qscale_weight", "nvfp4": "w3.weight_global_scale"}.get(b.form, "w3.weight")
    b.change(expert(0, 1, end), lambda x: -x)


def norms_of_two_layers(b: Bench) -> None:
    b.swap("layers.0.ffn_norm.weight", "layers.1.ffn_norm.weight")


def norms_in_the_wrong_order(b: Bench) -> None:
    b.swap("layers.0.attention_norm.weight", "layers.0.ffn_norm.weight")


def layers_swapped(b: Bench) -> None:
    b.swap("layers.0.", "layers.1.")


def towers_layers_swapped(b: Bench) -> None:
    b.swap("vision_encoder.transformer.layers.0.", "vision_encoder.transformer.layers.1.")


def gate_and_up_swapped(b: Bench) -> None:
    b.swap("layers.1.shared_experts.w1.", "layers.1.shared_experts.w3.")


def swapped_offsets(b: Bench) -> None:
    file = next(f for f in cf.files(b.folder) if len(_norms(f)) > 1)
    cf.swap_offsets(b.folder, *b.draw.sample(_norms(file), 2))


def _norms(file: Path) -> list[str]:
    return [n for n, e in cf.header(file)[0].items() if n != "__metadata__" and e["shape"] == [64] and "norm" in n]


def flipped_bit(b: Bench) -> None:
    cf.flip_bit(b.folder, b.draw.choice(sorted(b.tensors)), b.draw)


def router_rows(b: Bench) -> None:
    b.change("layers.0.gate.weight", lambda x: x[[1, 0, 2, 3]])


def vision_rope(b: Bench) -> None:
    b.change("vision_encoder.transformer.layers.1.attention.wk.weight", lambda x: rc.halves(x, 2))


def text_rope(b: Bench) -> None:
    def turned(rows: torch.Tensor) -> torch.Tensor:
        heads = rows.view(4, 32, -1).clone()
        heads[:, 16:] = torch.cat([heads[:, 16::2], heads[:, 17::2]], dim=1)
        return heads.view_as(rows)

    b.change("layers.1.attention.wq_b.weight", turned)


def keys_and_values(b: Bench) -> None:
    b.change(
        "layers.0.attention.wkv_b.weight",
        lambda x: torch.cat([x.view(4, 40, -1)[:, 16:], x.view(4, 40, -1)[:, :16]], dim=1).view_as(x),
    )


def halves_of_kv_b(b: Bench) -> None:
    b.change("layers.1.attention.wkv_b.weight", lambda x: torch.cat([x[len(x) // 2 :], x[: len(x) // 2]]))


def keys_before_values(b: Bench) -> None:
    def parted(x: torch.Tensor) -> torch.Tensor:
        heads = x.view(4, 40, -1)
        return torch.cat([heads[:, :16].reshape(64, -1), heads[:, 16:].reshape(96, -1)])

    b.change("layers.0.attention.wkv_b.weight", parted)


def norms_moved_round(b: Bench) -> None:
    names = [f"layers.{n}.{norm}_norm.weight" for n in (0, 1) for norm in ("attention", "ffn")]
    kept = b.tensors
    cf.change(b.folder, {name: kept[names[n - 1]].clone() for n, name in enumerate(names)})


def transposed(b: Bench) -> None:
    b.change("vision_encoder.transformer.layers.0.attention.wv.weight", lambda x: x.T)


def not_a_number(b: Bench) -> None:
    if b.form == "fp8":
        b.change(expert(1, 0, "w1.weight"), _one_nan)
    else:
        b.change("layers.1.attention_norm.weight", lambda x: torch.where(torch.arange(len(x)) == 5, torch.nan, x))


def _one_nan(codes: torch.Tensor) -> torch.Tensor:
    out = codes.clone()
    out.view(-1)[17] = 127
    return out


def an_infinite_scale(b: Bench) -> None:
    name = {"fp8": "layers.0.attention.wo.qscale_act", "nvfp4": expert(0, 0, "w1.weight_global_scale")}.get(b.form)
    b.change(name or "norm.weight", lambda x: x * torch.inf)


def missing_tensor(b: Bench) -> None:
    cf.drop(b.folder, "layers.1.attention.kv_a_norm.weight")


def extra_tensor(b: Bench) -> None:
    cf.add(b.folder, "layers.2.ffn_norm.weight", torch.ones(64, dtype=torch.bfloat16))


def wrong_dtype(b: Bench) -> None:
    cf.change(b.folder, {"layers.0.ffn_norm.weight": b.tensors["layers.0.ffn_norm.weight"].float()})


def wrong_dtype_of_the_first(b: Bench) -> None:
    cf.change(b.folder, {"tok_embeddings.weight": b.tensors["tok_embeddings.weight"].float()})


def wrong_shape(b: Bench) -> None:
    b.change("layers.0.attention.q_a_norm.weight", lambda x: x[:-1])


def truncated_shard(b: Bench) -> None:
    file = cf.files(b.folder)[-1]
    file.write_bytes(file.read_bytes()[:-1000])


def trailing_bytes(b: Bench) -> None:
    with cf.files(b.folder)[0].open("ab") as file:
        file.write(b"1234567")


def lfs_pointer(b: Bench) -> None:
    cf.files(b.folder)[0].write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n")


def missing_shard(b: Bench) -> None:
    cf.files(b.folder)[0].unlink()


def missing_setting(b: Bench) -> None:
    yarn = json.loads((b.folder / "params.json").read_text())["yarn"]
    b.params(yarn={key: value for key, value in yarn.items() if key != "apply_scale"})


def tied(b: Bench) -> None:
    b.params(tied_embeddings=True)


def softmax_rule(b: Bench) -> None:
    b.params(yarn=json.loads((b.folder / "params.json").read_text())["yarn"] | {"apply_scale": True})


def another_theta(b: Bench) -> None:
    b.params(rope_theta=1e6)


def another_tokenizer(b: Bench) -> None:
    file = b.folder / "tekken.json"
    content = json.loads(file.read_text("utf-8"))
    content["vocab"][-1], content["vocab"][-2] = (
        content["vocab"][-1] | {"token_bytes": content["vocab"][-2]["token_bytes"]},
        content["vocab"][-2] | {"token_bytes": content["vocab"][-1]["token_bytes"]},
    )
    file.write_text(json.dumps(content))


def a_larger_tokenizer(b: Bench) -> None:
    (b.folder / "tekken.json").unlink()
    write_tekken(b.folder, 120)


def negated(b: Bench) -> None:
    b.change("output.weight", lambda x: -x)


@dataclass(frozen=True)
class Planted:
    """kinds: one of these words is in the kind of a fault. where: stands in what is named. alone: also found without a
    manifest; None where it depends on the form."""

    do: Callable[[Bench], None]
    kinds: str
    where: str
    alone: bool | None = False


PLANTED = [
    Planted(swapped_experts, "swapped experts", "layers.1.experts.0 and layers.1.experts.2"),
    Planted(duplicated_expert, "duplicate expert", "layers.0.experts.1 and layers.0.experts.3: are the same", True),
    Planted(dead_expert, "dead expert", "layers.1.experts.1.w2", True),
    Planted(scale_twice, "scale", "layers.", True),
    Planted(slightly_wrong_scale, "scale|changed numbers", "layers.0."),
    Planted(negative_scale, "negative scale|negated", "layers.0.experts.1.w3", None),
    Planted(norms_of_two_layers, "swapped tensors", "layers.0.ffn_norm.weight and layers.1.ffn_norm.weight"),
    Planted(norms_in_the_wrong_order, "swapped tensors", "layers.0.attention_norm.weight and layers.0.ffn_norm.weight"),
    Planted(layers_swapped, "swapped layers", "layers.0 and layers.1"),
    Planted(towers_layers_swapped, "swapped layers", "vision_encoder.transformer.layers.0 and"),
    Planted(gate_and_up_swapped, "swapped tensors", "layers.1.shared_experts.w1.weight and"),
    Planted(swapped_offsets, "swapped tensors", "norm.weight and"),
    Planted(flipped_bit, "changed|proportion|scale|stored|finite|rows", "", None),
    Planted(router_rows, "permuted rows", "layers.0.gate.weight"),
    Planted(vision_rope, "rope pairing", "vision_encoder.transformer.layers.1.attention.wk.weight"),
    Planted(text_rope, "rope pairing", "layers.1.attention.wq_b.weight"),
    Planted(keys_and_values, "keys and values", "layers.0.attention.wkv_b.weight"),
    Planted(halves_of_kv_b, "keys and values", "layers.1.attention.wkv_b.weight"),
    Planted(keys_before_values, "keys and values", "layers.0.attention.wkv_b.weight"),
    Planted(norms_moved_round, "moved tensor", "layers.1.ffn_norm.weight"),
    Planted(transposed, "transposed", "vision_encoder.transformer.layers.0.attention.wv.weight"),
    Planted(not_a_number, "not finite", "layers.1.", True),
    Planted(an_infinite_scale, "not finite|input scale", "", True),
    Planted(missing_tensor, "missing tensor", "layers.1.attention.kv_a_norm.weight", True),
    Planted(extra_tensor, "extra tensor", "layers.2.ffn_norm.weight", True),
    Planted(wrong_dtype, "wrong dtype", "layers.0.ffn_norm.weight", True),
    Planted(wrong_dtype_of_the_first, "wrong dtype", "tok_embeddings.weight", True),
    Planted(wrong_shape, "wrong shape", "layers.0.attention.q_a_norm.weight", True),
    Planted(truncated_shard, "truncated file", "consolidated-00002-of-00002.safetensors", True),
    Planted(trailing_bytes, "trailing bytes", "consolidated-00001-of-00002.safetensors: 7 bytes too many", True),
    Planted(lfs_pointer, "Git LFS pointer", "consolidated-00001-of-00002.safetensors: is a Git LFS pointer", True),
    Planted(missing_shard, "missing file", "consolidated-00001-of-00002.safetensors", True),
    Planted(missing_setting, "configuration", "params.json: yarn.apply_scale is missing", True),
    Planted(tied, "extra tensor", "tied_embeddings is true", True),
    Planted(softmax_rule, "softmax rule", "softmax_scale_rule"),
    Planted(another_theta, "configuration", "rope_theta"),
    Planted(another_tokenizer, "tokenizer", "tekken.json", True),
    Planted(a_larger_tokenizer, "tokenizer", "tekken.json", True),
    Planted(negated, "negated", "output.weight"),
]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.do.__name__)
def test_a_planted_fault_is_found_and_named(releases: dict[str, Path], tmp_path: Path, planted: Planted) -> None:
    for seed, form in enumerate(FORMS):
        folder = shutil.copytree(releases[form], tmp_path / form)
        planted.do(Bench(folder, form, random.Random(seed)))
        faults = found(folder)
        hits = [text for kind, text in faults if re.search(planted.kinds, kind) and planted.where in text]
        assert hits, (form, faults)
        assert len(faults) <= 4, (form, faults)
        if planted.alone is not None and PLANTED.index(planted) % len(FORMS) == seed:
            (folder / MANIFEST).unlink()
            alone = [text for kind, text in found(folder) if re.search(planted.kinds, kind) and planted.where in text]
            assert bool(alone) == planted.alone, (form, alone)


def found(folder: Path) -> list[tuple[str, str]]:
    """The kind and the text of each fault."""
    report = check(folder, CheckOptions(run=False))
    assert report.failed == any(row.status == FAILED for row in report.rows)
    assert report.failed == any(row.faults for row in report.rows)
    return [(fault.kind, str(fault)) for row in report.rows for fault in row.faults]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(2))
def test_a_healthy_release_passes(tmp_path: Path, form: str, seed: int) -> None:
    folder = release(tmp_path / "raw", form, 10 + seed)
    assert found(folder) == []
    kept = write_manifest(folder)
    run(folder, tmp_path / "ours", shard_size=10**5)
    run(folder, tmp_path / "hf", to="transformers")
    for name in ("raw", "ours", "hf"):
        assert found(tmp_path / name) == []
        for quick in (False, True):
            report = check(tmp_path / name, CheckOptions(quick=quick, run=False, manifest=kept))
            assert [str(fault) for row in report.rows for fault in row.faults] == [], (name, quick)


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


OURS = "model.language_model.layers."


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


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A release in the fused layouts. Not to be written into."""
    folder = tmp_path_factory.mktemp("fused")
    raw = release(folder / "raw", "bf16", 5)
    for layout in ("small4", "transformers"):
        run(raw, folder / layout, to=layout)
    return {layout: folder / layout for layout in ("small4", "transformers")}


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


def both_sets(fused: dict[str, Path], folder: Path) -> Path:
    """A folder with the weights of both releases, of which the head is negated in the one that is loaded."""
    shutil.copytree(fused["small4"], folder)
    cf.change(folder, {"lm_head.weight": -cf.load(folder)["lm_head.weight"]})
    shutil.copytree(folder, folder.with_name("loaded set"))
    for file in fused["small4"].with_name("raw").iterdir():
        shutil.copy(file, folder)
    return folder


def test_of_two_sets_of_weights_the_loaded_one_is_checked(
    fused: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = both_sets(fused, tmp_path / "both")
    assert [kind for kind, _ in found(folder)] == ["negated"]
    read, other = "config.json (model*.safetensors)", "params.json (consolidated*.safetensors)"
    assert f"that of {read} is read, that of {other} is not" in check(folder, CheckOptions(quick=True)).text()
    assert cli.main(["verify", str(folder)]) == 1
    assert cli.main(["manifest", str(folder)]) == 0
    assert cli.main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.count(f"that of {read} is read") == 3
    assert cli.main(["convert", str(folder), str(tmp_path / "out"), "--no-manifest"]) == 0
    assert f"that of {other} is read" in capsys.readouterr().out
    rc.same_bits(cf.load(tmp_path / "out"), cf.load(fused["small4"]))
    run(folder, tmp_path / "loaded", as_loaded=True)  # as it is converted where it has to be before it runs
    rc.same_bits(cf.load(tmp_path / "loaded"), cf.load(folder.with_name("loaded set")))


def test_files_that_are_loaded_otherwise_than_they_are_named(fused: dict[str, Path], tmp_path: Path) -> None:
    run(fused["small4"], tmp_path / "sound", shard_size=10**5)
    index, whole = "model.safetensors.index.json", fused["small4"] / "model.safetensors"

    def faults(*added: Path, without: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        folder = Path(shutil.copytree(tmp_path / "sound", tmp_path / "changed", dirs_exist_ok=True))
        for file in added:
            shutil.copy(file, folder)
        for pattern in without:
            for file in folder.glob(pattern):
                file.unlink()
        out = found(folder)
        shutil.rmtree(folder)
        return out

    assert faults() == []
    sets = [("several sets of weights", f"changed: holds weights of several sets, {whole.name} and the files that "
             f"{index} names; keep one of them")]  # fmt: skip
    assert faults(whole) == sets
    assert faults(whole, without=("model-*",)) == sets
    assert [(kind, text.split(":")[0]) for kind, text in faults(without=(index,))] == [("missing file", index)]
    assert faults(whole, without=("model-*", index)) == []
    (tmp_path / "sound" / "adapter_config.json").write_text("{}")
    assert "from_pretrained adds this adapter" in check(tmp_path / "sound", CheckOptions(quick=True)).text()
    config = tmp_path / "sound" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"transformers_weights": "other.safetensors"}))
    assert [(kind, text[:33]) for kind, text in faults()] == [("configuration", "config.json: transformers_weights")]


def contradictions(folder: Path) -> list[str]:
    return [str(fault) for fault in announced_faults(open_checkpoint(folder))]


def change_group(folder: Path, **changed: object) -> None:
    """Change what is announced of weights, in the words of compressed-tensors."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["quantization_config"]["config_groups"]["group_0"]["weights"].update(changed)
    file.write_text(json.dumps(content))


ANNOUNCED: list[tuple[str, dict[str, object], str]] = [
    ("w4a16", {"group_size": 32}, "group_size: is 32 in config.json, but 40 weights, such as "),
    ("w4a16", {"num_bits": 8}, "num_bits: is 8 in config.json, but 40 weights, such as "),
    ("w4a16", {"strategy": "channel", "group_size": None}, "group_size: is -1 in config.json"),
    ("w4a16 asymmetric", {"symmetric": True}, "symmetric: is True"),
    ("nvfp4", {"group_size": 32}, "group_size: is 32"),
    ("nvfp4", {"num_bits": 8}, "num_bits: is 8"),
    ("fp8 dynamic", {"strategy": "tensor"}, "strategy: is 'tensor'"),
]


@pytest.mark.parametrize("name", KEPT)
def test_what_is_announced_of_weights_is_what_is_stored(tmp_path: Path, name: str) -> None:
    made_kept(tmp_path / "hf", name)
    run(tmp_path / "hf", tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "raw", to="mistral")
    for layout in ("hf", "ours", "raw"):
        assert contradictions(tmp_path / layout) == []
    for _, changed, says in (each for each in ANNOUNCED if each[0] == name):
        for layout in ("hf",) if "fp8" in name else ("hf", "ours"):  # ours has other words for FP8
            folder = Path(shutil.copytree(tmp_path / layout, tmp_path / f"{layout} {next(iter(changed))}"))
            change_group(folder, **changed)
            assert [text[: len(says)] for text in contradictions(folder)] == [says]


def test_groups_of_whole_rows_are_announced_so(tmp_path: Path) -> None:
    """Whose rows are of several lengths."""
    p = rc.params()
    entry = {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False, "format": "gptq_v2"}
    stored, _ = d.derive(p, rc.weights(p), lambda tensor: d.gptq(tensor.shape[1], 4, tensor, version=2))
    d.write_folder(tmp_path / "hf", p, stored, entry)
    run(tmp_path / "hf", tmp_path / "ours")
    assert contradictions(tmp_path / "ours") == []


def test_mlx_and_scales_of_inputs_that_are_announced_otherwise(releases: dict[str, Path], tmp_path: Path) -> None:
    p = rc.params(kv_lora_rank=64, q_lora_rank=64, qk_nope_head_dim=32, v_head_dim=32)
    d.mlx_folder(tmp_path / "mlx", p, rc.weights(p), 4)
    assert contradictions(tmp_path / "mlx") == []
    file = tmp_path / "mlx" / "config.json"
    file.write_text(file.read_text().replace('"group_size": 32', '"group_size": 64'))
    assert [text[:17] for text in contradictions(tmp_path / "mlx")] == ["group_size: is 64"]

    bench = Bench(shutil.copytree(releases["fp8"], tmp_path / "fp8"), "fp8", random.Random(0))
    entry = {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"}
    bench.params(quantization=entry)
    assert found(bench.folder) == [
        ("quantization", "qscheme_act: is 'NO_SCALES' in params.json, but scales of inputs are stored")
    ]
    p = rc.params()
    folder = rc.write_raw(tmp_path / "dynamic", rc.fp8_params(p), rc.to_fp8(rc.weights(p), static=False))
    assert contradictions(folder) == ["qscheme_act: is 'TENSOR' in params.json, but scales of inputs are not stored"]
