"""Damaged and foreign input: every kind ends in exit status 1 with one line that names file and tensor, and nothing is
written.
"""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import raw_checkpoint as rc
import torch
from safetensors.torch import load_file, save_file
from small4_conversion.__main__ import main
from small4_conversion.convert import Options, convert
from small4_conversion.files import weight_files

Damage = Callable[[Path], None]
FIRST, SECOND = "consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"
WO = "layers.0.attention.wo.weight"
W1 = "layers.1.experts.2.w1"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound folder of each kind."""
    root = tmp_path_factory.mktemp("good")
    p = rc.params()
    raw = rc.weights(p)
    rc.write_raw(root / "raw", p, raw)
    rc.write_raw(root / "indexed", p, raw, index=True)
    rc.write_raw(root / "fp8", rc.fp8_params(p), rc.to_fp8(raw))
    nvfp4 = p | {"quantization_config": {"quant_method": "compressed-tensors"}}
    rc.write_raw(root / "nvfp4", nvfp4, rc.to_nvfp4(raw)[0])
    convert(root / "raw", root / "ours", Options(shard_size=150_000))
    convert(root / "fp8", root / "ours-fp8", Options())
    convert(root / "raw", root / "hf", Options(to="transformers"))
    return root


def home(folder: Path, tensor: str) -> Path:
    """The file of `folder` that holds `tensor`."""
    return next(file for file in sorted(folder.glob("*.safetensors")) if tensor in load_file(file))


def change(tensor: str, new: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    """Replace a tensor, or drop it where `new` gives None."""

    def damage(folder: Path) -> None:
        file = home(folder, tensor)
        tensors = load_file(file)
        value = new(tensors.pop(tensor))
        save_file(tensors if value is None else tensors | {tensor: value.contiguous()}, file)

    return damage


def drop(tensor: str) -> Damage:
    return change(tensor, lambda _: None)


def drop_all(*prefixes: str) -> Damage:
    def damage(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            save_file({name: t for name, t in load_file(file).items() if not name.startswith(prefixes)}, file)

    return damage


def add(tensor: str, value: torch.Tensor | None = None, file: str = FIRST) -> Damage:
    def damage(folder: Path) -> None:
        extra = torch.ones(2, 2, dtype=torch.bfloat16) if value is None else value
        save_file(load_file(folder / file) | {tensor: extra}, folder / file)

    return damage


def edit(file: str, path: str, value: Any = ...) -> Damage:
    """Set a key of a JSON file, or remove it."""

    def damage(folder: Path) -> None:
        content = tree = json.loads((folder / file).read_text())
        *parents, last = path.split("/")
        for parent in parents:
            tree = tree[parent]
        if value is ...:
            del tree[last]
        else:
            tree[last] = value
        (folder / file).write_text(json.dumps(content))

    return damage


def text(file: str, content: str | bytes) -> Damage:
    return lambda folder: (
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def cut(file: str, keep: Callable[[int], int]) -> Damage:
    return lambda folder: os.truncate(folder / file, keep((folder / file).stat().st_size))


def remove(*files: str) -> Damage:
    return lambda folder: [(folder / file).unlink() for file in files] and None


def header(file: str, alter: Callable[[dict[str, Any]], Any]) -> Damage:
    """Rewrite the header of a safetensors file, leaving the bodies."""

    def damage(folder: Path) -> None:
        data = (folder / file).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + length])
        content.pop("__metadata__", None)
        altered = alter(content)
        new = (json.dumps(content) if altered is None else altered).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])

    return damage


def entry(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def alter(content: dict[str, Any]) -> None:
        content[next(iter(content))][key] = value

    return alter


def shift(content: dict[str, Any]) -> None:
    first = min(content.values(), key=lambda e: e["data_offsets"][0])
    first["data_offsets"] = [n + 1 for n in first["data_offsets"]]


def overlap(content: dict[str, Any]) -> None:
    same = [e for e in content.values() if e["shape"] == [64]]
    same[1]["data_offsets"] = same[0]["data_offsets"]


def pickled(name: str) -> Damage:
    def damage(folder: Path) -> None:
        for file in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
            file.unlink()
        (folder / name).write_bytes(pickle.dumps(_Trap()))

    return damage


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os._exit, (99,))


def point(index: str, tensor: str, target: str) -> Damage:
    return edit(index, f"weight_map/{tensor}", target)


def nested(file: str) -> Damage:
    return text(file, '{"a":' * 100_000)


def twice(folder: Path) -> None:
    tensors = load_file(home(folder, WO))
    other = SECOND if home(folder, WO).name == FIRST else FIRST
    save_file(load_file(folder / other) | {WO: tensors[WO]}, folder / other)


def old_spelling(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"language_model.lm_head.weight": tensors["lm_head.weight"].clone()}, file)


INDEX, OUR_INDEX = "consolidated.safetensors.index.json", "model.safetensors.index.json"
EMBED, FUSED = "model.language_model.embed_tokens.weight", "model.language_model.layers.0.mlp.experts.gate_up_proj"
MISSING_ENTRY = "model.language_model.norm.weight"

# name: (folder to damage, what to do, words the line must hold)
KINDS: dict[str, tuple[str, Damage, tuple[str, ...]]] = {
    "tensor missing": ("raw", drop(WO), ("params.json", WO, "missing")),
    "expert missing": ("raw", drop(W1 + ".weight"), (W1, "missing")),
    "vision tensor missing": ("raw", drop("patch_merger.merging_layer.weight"),
    ("patch_merger.merging_layer.weight", "missing")),
    "vision missing": ("hf", drop_all("model.vision_tower.", "model.multi_modal_projector."),
    ("model.vision_tower.", "missing")),
    "tensor extra": ("raw", add("layers.9.attention.wo.weight"), (FIRST, "layers.9.attention.wo.weight")),
    "bias extra": ("raw", add("vision_language_adapter.w_in.bias"), (FIRST, "vision_language_adapter.w_in.bias")),
    "foreign tensor": ("raw", add("lora_A.weight"), (FIRST, "lora_A.weight")),
    "tensor transposed": ("raw", change(WO, lambda t: t.T), (WO, "shape")),
    "tensor one row short": ("raw", change("tok_embeddings.weight", lambda t: t[:-1]),
    ("tok_embeddings.weight", "shape")),
    "tensor flat": ("raw", change(WO, lambda t: t.reshape(-1)), (WO, "shape")),
    "tensor float32": ("raw", change(WO, torch.Tensor.float), (WO, "F32")),
    "tensor integer": ("raw", change(WO, lambda t: t.to(torch.int32)), (WO, "I32")),
    "tensor float64": ("raw", change(WO, torch.Tensor.double), (WO, "F64")),
    "tensor E5M2": ("raw", change(WO, lambda t: t.to(torch.float8_e5m2)), (WO, "F8_E5M2")),
    "FP8 unannounced": ("raw", change(WO, lambda t: t.to(torch.float8_e4m3fn)), (WO.removesuffix("weight"), "missing")),
    "tensor twice": ("raw", twice, (WO, "also in")),
    "truncated body": ("raw", cut(SECOND, lambda n: n - 100), (SECOND, "truncated", "tensor")),
    "truncated header": ("raw", cut(SECOND, lambda n: 40), (SECOND, "truncated")),
    "empty file": ("raw", cut(FIRST, lambda n: 0), (FIRST, "truncated")),
    "bytes too many": ("raw", cut(FIRST, lambda n: n + 7), (FIRST, "too many")),
    "no safetensors file": ("raw", text(FIRST, b"\x80\x04" + b"x" * 500), (FIRST,)),
    "header no JSON": ("raw", header(FIRST, lambda c: json.dumps(c)[:-9]), (FIRST, "header")),
    "header not UTF-8": ("raw", text(FIRST, struct.pack("<Q", 8) + b"\xff\xfe{}{}{}"), (FIRST, "header")),
    "header a list": ("raw", header(FIRST, lambda c: "[]"), (FIRST, "header")),
    "header nested deep": ("raw", header(FIRST, lambda c: "[" * 100_000), (FIRST, "header")),
    "header huge": ("raw", text(FIRST, struct.pack("<Q", 1 << 60) + b"{}"), (FIRST,)),
    "header entry twice": ("raw", header(FIRST, lambda c: '{"a":1,"a":2}'), (FIRST, "twice")),
    "header metadata no texts": ("raw", header(FIRST, lambda c: c.update(__metadata__={"format": 1})),
    (FIRST, "__metadata__")),
    "header metadata a list": ("raw", header(FIRST, lambda c: c.update(__metadata__=[])), (FIRST, "__metadata__")),
    "shape an empty text": ("raw", header(FIRST, entry("shape", "")), (FIRST, "tensor")),
    "shape too large": ("raw", header(FIRST, entry("shape", [0, 10**24])), (FIRST, "tensor")),
    "shape of too many": ("raw", header(FIRST, entry("shape", [2**40, 2**40, 0])), (FIRST, "tensor")),
    "unknown dtype": ("raw", header(FIRST, entry("dtype", "Q4_K")), (FIRST, "Q4_K", "tensor")),
    "dtype no string": ("raw", header(FIRST, entry("dtype", ["BF16"])), (FIRST, "tensor")),
    "entry without offsets": ("raw", header(FIRST, lambda c: c[next(iter(c))].pop("data_offsets") and None),
    (FIRST, "tensor")),
    "negative shape": ("raw", header(FIRST, entry("shape", [-64, -64])), (FIRST, "tensor")),
    "shape of text": ("raw", header(FIRST, entry("shape", "64")), (FIRST, "tensor")),
    "shape against bytes": ("raw", header(FIRST, entry("shape", [3])), (FIRST, "bytes")),
    "offsets with a gap": ("raw", header(FIRST, shift), (FIRST, "tensor")),
    "offsets overlap": ("raw", header(FIRST, overlap), (FIRST, "overlaps")),
    "shard missing": ("raw", remove(SECOND), (SECOND, "missing")),
    "all shards missing": ("raw", remove(FIRST, SECOND), ("consolidated",)),
    "shard of another set": ("raw", lambda f: shutil.copy(f / FIRST,
    f / "consolidated-00001-of-00003.safetensors") and None, ("several sets",)),
    "whole file beside shards": ("raw", lambda f: shutil.copy(f / FIRST, f / "consolidated.safetensors") and None,
    ("several sets",)),
    "shard too many": ("raw", lambda f: shutil.copy(f / FIRST, f / "consolidated-00003-of-00002.safetensors") and None,
    ("3 shards of 2",)),
    "pickle instead": ("raw", pickled("consolidated.00.pth"), ("consolidated.00.pth", "pickle")),
    "pickle instead, ours": ("ours", pickled("pytorch_model.bin"), ("pytorch_model.bin", "pickle")),
    "params missing": ("raw", remove("params.json"), ("params.json",)),
    "params empty": ("raw", text("params.json", ""), ("params.json", "JSON")),
    "params cut": ("raw", cut("params.json", lambda n: n - 5), ("params.json", "JSON")),
    "params a list": ("raw", text("params.json", "[1]"), ("params.json", "object")),
    "params with NaN": ("raw", text("params.json", '{"norm_eps": NaN}'), ("params.json", "NaN")),
    "params key twice": ("raw", text("params.json", '{"dim": 64, "dim": 64}'), ("params.json", "dim", "twice")),
    "params nested deep": ("raw", nested("params.json"), ("params.json",)),
    "params key missing": ("raw", edit("params.json", "kv_lora_rank"), ("params.json", "kv_lora_rank", "missing")),
    "params without apply_scale": ("raw", edit("params.json", "yarn/apply_scale"), ("params.json", "yarn.apply_scale")),
    "params without yarn": ("raw", edit("params.json", "yarn"), ("params.json", "yarn")),
    "params without moe": ("raw", edit("params.json", "moe"), ("params.json", "moe")),
    "params text for a number": ("raw", edit("params.json", "dim", "64"), ("params.json", "dim", "integer")),
    "params true for a number": ("raw", edit("params.json", "n_layers", True), ("params.json", "n_layers", "integer")),
    "params number for true": ("raw", edit("params.json", "yarn/apply_scale", 0), ("params.json", "yarn.apply_scale")),
    "params negative": ("raw", edit("params.json", "n_layers", -2), ("params.json", "num_hidden_layers")),
    "params zero": ("raw", edit("params.json", "moe/num_experts", 0), ("params.json", "experts")),
    "params top-k too large": ("raw", edit("params.json", "moe/num_experts_per_tok", 5),
    ("params.json", "num_experts_per_tok")),
    "params odd rotary width": ("raw", edit("params.json", "qk_rope_head_dim", 15),
    ("params.json", "qk_rope_head_dim")),
    "params one layer more": ("raw", edit("params.json", "n_layers", 3), ("layers.2.", "missing")),
    "params one layer less": ("raw", edit("params.json", "n_layers", 1), ("layers.1.", "not part")),
    "params more experts": ("raw", edit("params.json", "moe/num_experts", 5), ("gate.weight", "shape")),
    "params two scaling lengths": ("raw", edit("params.json", "llama_4_scaling/original_max_position_embeddings", 64),
    ("params.json", "llama_4_scaling")),
    "params every second layer": ("raw", edit("params.json", "moe/route_every_n", 2),
    ("params.json", "moe.route_every_n")),
    "params true for one": ("raw", edit("params.json", "moe/route_every_n", True),
    ("params.json", "moe.route_every_n", "True")),
    "params other projector": ("raw", edit("params.json", "vision_encoder/mm_projector_id", "mlp"),
    ("params.json", "mm_projector_id")),
    "params tied with a head": ("raw", edit("params.json", "tied_embeddings", True), ("output.weight",)),
    "params without vision": ("raw", edit("params.json", "vision_encoder"), ("not part",)),
    "params unknown format": ("fp8", edit("params.json", "quantization/qformat_weight", "int4"),
    ("params.json", "quantization", "int4")),
    "params unknown scheme": ("fp8", edit("params.json", "quantization/qscheme_act", "CHANNEL"),
    ("params.json", "quantization", "CHANNEL")),
    "FP8 announced, none stored": ("raw",
    edit("params.json", "quantization", {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}),
        ("params.json", "FP8")),
    "FP8 not announced": ("fp8", edit("params.json", "quantization"), ("params.json", "no quantization")),
    "NVFP4 announced, none stored": ("raw", edit("params.json", "quantization_config", {}), ("params.json", "NVFP4")),
    "weight scale missing": ("fp8", drop(W1 + ".qscale_weight"), (W1 + ".qscale_weight", "missing")),
    "one activation scale missing": ("fp8", drop(W1 + ".qscale_act"), (W1 + ".weight", "activation scale")),
    "scale of many values": ("fp8", change(W1 + ".qscale_weight", lambda t: t.expand(32)),
    (W1 + ".qscale_weight", "shape")),
    "scale an integer": ("fp8", change(W1 + ".qscale_weight", lambda t: t.int()), (W1 + ".qscale_weight", "I32")),
    "scales of two dtypes": ("fp8", change(W1 + ".qscale_weight", torch.Tensor.float), ("scales", "dtype")),
    "one expert plain": ("fp8", change(W1 + ".weight", torch.Tensor.bfloat16), (W1,)),
    "FP8 embedding": ("fp8", change("tok_embeddings.weight", lambda t: t.to(torch.float8_e4m3fn)),
    ("tok_embeddings.weight", "never quantized")),
    "NVFP4 global scale missing": ("nvfp4", drop(W1 + ".weight_global_scale"),
    (W1 + ".weight_global_scale", "missing")),
    "NVFP4 block scales misshapen": ("nvfp4", change(W1 + ".weight_scale", lambda t: t[:, :-1]),
    (W1 + ".weight_scale", "shape")),
    "NVFP4 packed as int8": ("nvfp4", change(W1 + ".weight_packed", lambda t: t.view(torch.int8)),
    (W1 + ".weight_packed", "I8")),
    "index points up": ("indexed", point(INDEX, WO, "../raw/" + FIRST), (INDEX, WO, "outside")),
    "index absolute": ("indexed", point(INDEX, WO, "/etc/passwd"), (INDEX, WO, "outside")),
    "index into a subfolder": ("indexed", point(INDEX, WO, "sub/x.safetensors"), (INDEX, WO, "outside")),
    "index with backslashes": ("indexed", point(INDEX, WO, "..\\x.safetensors"), (INDEX, WO, "outside")),
    "index to a pickle": ("indexed", point(INDEX, WO, "model.bin"), (INDEX, WO, "model.bin")),
    "index to a number": ("indexed", point(INDEX, WO, 3), (INDEX, WO)),
    "index to a missing shard": ("indexed", point(INDEX, WO, "consolidated-00009-of-00009.safetensors"),
    ("00009-of-00009", "missing")),
    "index entry wrong": ("indexed", lambda f: point(INDEX, WO, SECOND if home(f, WO).name == FIRST else FIRST)(f),
    (WO, "missing", INDEX)),
    "index entry missing": ("indexed", edit(INDEX, f"weight_map/{WO}"), (WO, INDEX)),
    "index without map": ("indexed", edit(INDEX, "weight_map"), (INDEX, "weight_map")),
    "index map a list": ("indexed", edit(INDEX, "weight_map", []), (INDEX, "weight_map")),
    "index cut": ("indexed", cut(INDEX, lambda n: n // 2), (INDEX, "JSON")),
    "tekken missing": ("raw", remove("tekken.json"), ("tekken.json",)),
    "tekken cut": ("raw", cut("tekken.json", lambda n: n // 2), ("tekken.json",)),
    "tekken another object": ("raw", text("tekken.json", '{"config": {}}'), ("tekken.json",)),
    "tekken old version": ("raw", edit("tekken.json", "config/version", "v3"), ("tekken.json", "v3")),
    "tekken vocabulary broken": ("raw", edit("tekken.json", "vocab", [{"rank": "x"}]), ("tekken.json",)),
    "tekken of a larger vocabulary": ("raw", edit("tekken.json", "config/default_vocab_size", 2000),
    ("tekken.json", "2000", "1100")),
    "config cut": ("ours", cut("config.json", lambda n: n // 2), ("config.json", "JSON")),
    "config of another model": ("ours", edit("config.json", "model_type", "llama"), ("config.json", "llama")),
    "config of another text model": ("hf", edit("config.json", "text_config/model_type", "mistral"),
    ("config.json", "mistral4")),
    "config without its size": ("ours", edit("config.json", "text_config/hidden_size", "big"),
    ("config.json", "hidden_size")),
    "config block FP8": ("ours-fp8", edit("config.json", "quantization_config/weight_block_size", [128, 128]),
    ("config.json", "weight_block_size")),
    "config other quantization": ("ours-fp8", edit("config.json", "quantization_config/quant_method", "awq"),
    ("config.json", "awq")),
    "config amplitude": ("hf", edit("config.json", "text_config/rope_parameters/attention_factor", 1.3),
    ("config.json", "attention_factor")),
    "our index outside": ("ours", point(OUR_INDEX, EMBED, "../x.safetensors"), (OUR_INDEX, EMBED, "outside")),
    "our tensor missing": ("hf", drop(MISSING_ENTRY), ("config.json", MISSING_ENTRY, "missing")),
    "experts not fused": ("hf", change(FUSED, lambda t: t[0]), (FUSED, "shape")),
    "fused scales misshapen": ("ours-fp8", change(FUSED + "_scale_inv", lambda t: t[:, :, 0]),
    (FUSED + "_scale_inv", "shape")),
    "two spellings": ("hf", old_spelling, ("two spellings",)),
}  # fmt: skip


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command; assert status 1, one line on standard error, none on standard output. Returns the line."""
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.count("\n") == 1, shown.err
    assert "Traceback" not in shown.err
    for word in words:
        assert word in shown.err, shown.err
    return shown.err


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused(kind: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, damage, words = KINDS[kind]
    source, target = tmp_path / layout, tmp_path / "out"
    shutil.copytree(good / layout, source)
    damage(source)
    capsys.readouterr()
    to = "mistral" if layout == "ours" else "small4"
    refused([str(source), str(target / "deep" / "dst"), "--to", to], capsys, *words)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [layout]


@pytest.mark.parametrize("file", [FIRST, "params.json", "tekken.json"])
def test_flipped_bytes_never_end_in_a_traceback(
    file: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(good / "fp8", tmp_path / "fp8")
    sound = (tmp_path / "fp8" / file).read_bytes()
    reach = 8 + struct.unpack("<Q", sound[:8])[0] if file == FIRST else len(sound)
    generator = torch.Generator().manual_seed(0)
    refusals = 0
    for _ in range(25):
        data = bytearray(sound)
        place, bit = (int(torch.randint(n, (), generator=generator)) for n in (reach, 8))
        data[place] ^= 1 << bit
        (tmp_path / "fp8" / file).write_bytes(data)
        status = main([str(tmp_path / "fp8"), str(tmp_path / "out"), "--overwrite"])
        shown = capsys.readouterr()
        assert status in (0, 1)
        assert (shown.err.count("\n"), bool(shown.out)) == ((0, True) if status == 0 else (1, False)), shown.err
        refusals += status
    assert refusals > 5


@pytest.mark.parametrize("layout", ["raw", "indexed", "fp8", "nvfp4", "ours", "ours-fp8", "hf"])
def test_undamaged_folders_pass(layout: str, good: Path, tmp_path: Path) -> None:
    assert main([str(good / layout), str(tmp_path / "out")]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", ("nowhere", "no such folder")),
        ("empty", ("empty", "no checkpoint")),
        ("file", ("is a file",)),
        ("../..//", ("no",)),
        ("a b c", ("no such folder",)),
        ("", ("no",)),
    ],
)
def test_what_is_no_source(
    source: str,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    refused([source, str(tmp_path / "out")], capsys, *words)
    assert not (tmp_path / "out").exists()


def test_the_longest_name_of_a_shard(tmp_path: Path) -> None:
    name = "é" + "m" * (255 - len("é.safetensors".encode())) + ".safetensors"
    save_file({"a": torch.ones(1)}, tmp_path / name)
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert weight_files(tmp_path, "index.json", "*") == [tmp_path / name]
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"a": f"m{name}"}}))
    with pytest.raises(ValueError, match="too long"):
        weight_files(tmp_path, "index.json", "*")


@pytest.mark.parametrize(("layout", "file"), [("raw", "params.json"), ("ours", "config.json")])
def test_softmax_scale_may_not_contradict_the_configuration(
    layout: str, file: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(good / layout), str(tmp_path / "out"), "--softmax-scale", "transformers"]
    refused(arguments, capsys, file, "released")


def test_what_the_raw_layout_cannot_say(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(good / "ours", tmp_path / "ours")
    edit("config.json", "text_config/norm_topk_prob", False)(tmp_path / "ours")
    refused([str(tmp_path / "ours"), str(tmp_path / "out"), "--to", "mistral"], capsys, "config.json", "norm_topk_prob")
    capsys.readouterr()
    refused([str(good / "raw"), str(tmp_path / "out"), "--to", "mistral", "--with-code"], capsys, "--with-code")
