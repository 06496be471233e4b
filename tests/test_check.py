"""`small4 check` on scaled-down releases: faults of many kinds are found and named, and healthy copies pass."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import checkpoint_faults as cf
import pytest
import raw_checkpoint as rc
import torch
from checked_releases import FORMS, Bench, expert, found, release, scale_twice, write_manifest
from conversion_cases import run
from small4_conversion.check import CheckOptions, check
from tekken_files import write_tekken

from modeling_small4.files_saving import MANIFEST


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
