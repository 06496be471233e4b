"""`from_pretrained` straight on what quantizers write, with one tensor for each expert: the same model, bit for bit, as
from what `small4 convert` makes of it, and saved as it is held.
"""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import CASES, check_logits, equal, run
from safetensors.torch import load_file, save_file
from small4_conversion.convert import convert
from test_formats_kept import KEPT
from transformers import AutoModelForCausalLM

from modeling_small4 import Small4ForCausalLM
from modeling_small4.stored_experts import Small4StoredExperts

INNER = "model.language_model.layers"
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}


def sizes(name: str, seed: int) -> dict[str, Any]:
    """Random sizes that the groups of a format divide."""
    draw, unit = random.Random(seed), 128 if "128" in name else 16
    return {
        "dim": unit * draw.choice((2, 3, 4)), "q_lora_rank": unit * draw.choice((1, 2, 3)), "n_layers": 2,
        "kv_lora_rank": unit * draw.choice((1, 2)), "v_head_dim": unit // draw.choice((2, 4)) if unit > 16 else 24,
        "moe": {"num_experts": draw.choice((3, 5, 11)), "expert_hidden_dim": unit * draw.choice((1, 2, 3))},
    } | ({"n_heads": 4} if unit > 16 else {}) | ({"vision": False} if "text" in name else {})  # fmt: skip


def made(folder: Path, name: str, seed: int) -> tuple[dict[str, Any], rc.Tensors, rc.Tensors]:
    """A folder in a format of `KEPT` with sizes of its own; its params, what is stored, the raw tensors it stands
    for.
    """
    encode, entry, _ = KEPT[name]
    p = rc.params(**sizes(name, seed))
    stored, plain = d.derive(p, rc.weights(p, seed), encode)
    d.write_folder(folder, p, stored, entry, old_names=bool(seed % 2))
    return p, stored, plain


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[Any, Any, bytes]]:
    return {
        name: (t.dtype, tuple(t.shape), t.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


@pytest.mark.parametrize(("name", "seed"), [(name, 1 + place % 2) for place, name in enumerate(KEPT)])
def test_the_same_model_as_after_conversion(tmp_path: Path, name: str, seed: int) -> None:
    p, _, plain = made(tmp_path / "hf", name, seed)
    run(tmp_path / "hf", tmp_path / "ours")
    direct = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    converted = Small4ForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(direct) is Small4ForCausalLM
    assert any(isinstance(module, Small4StoredExperts) for module in direct.modules())
    assert bits(direct.state_dict()) == bits(converted.state_dict())
    ids = torch.randint(1000, 1100, (2, 20), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(direct.generate(ids, **GREEDY), converted.generate(ids, **GREEDY))
    check_logits(direct, p, plain)
    direct = Small4ForCausalLM.from_pretrained(tmp_path / "hf")
    direct.save_pretrained(tmp_path / "saved")
    assert bits(rc.read_all(tmp_path / "saved")) == bits(rc.read_all(tmp_path / "ours"))
    again = Small4ForCausalLM.from_pretrained(tmp_path / "saved")
    assert bits(again.state_dict()) == bits(converted.state_dict())
    assert equal(tmp_path / "saved", tmp_path / "hf")


@pytest.mark.parametrize("name", KEPT)
def test_expanded_on_request(tmp_path: Path, name: str) -> None:
    p, _, plain = made(tmp_path / "hf", name, seed=4)
    model = Small4ForCausalLM.from_pretrained(tmp_path / "hf", dequantize=True)
    assert {t.dtype for t in model.state_dict().values()} == {torch.bfloat16}
    run(tmp_path / "hf", tmp_path / "ours", dtype="bfloat16")
    assert bits(model.state_dict()) == bits(Small4ForCausalLM.from_pretrained(tmp_path / "ours").state_dict())
    check_logits(model, p, plain)


@pytest.mark.parametrize("case", ["released", "text only", "experts", "dense first", "tied"])
@pytest.mark.parametrize("old", [True, False])
def test_plain_weights(tmp_path: Path, case: str, old: bool) -> None:
    p = rc.params(**CASES[case])
    raw = rc.weights(p, seed=6)
    d.write_folder(tmp_path / "hf", p, d.unfused(p, raw) if case != "dense first" else apart(p, raw), old_names=old)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    fused = rc.host_state(p, raw)
    assert bits({n: t for n, t in model.state_dict().items() if n in fused}) == bits(fused)
    check_logits(model, p, raw)


def apart(p: dict[str, Any], raw: rc.Tensors) -> rc.Tensors:
    out = {n: t for n, t in rc.host_state(p, raw).items() if ".mlp.experts." not in n}
    return out | {d.unfused_name(n): t for n, t in raw.items() if ".experts." in n}


def sharded(folder: Path, parts: int) -> None:
    """Cut the one file of a folder into several, tensors in no order."""
    tensors = load_file(folder / "model.safetensors")
    names = random.Random(parts).sample(sorted(tensors), len(tensors))
    index: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        save_file({n: tensors[n] for n in names[part::parts]}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names[part::parts], file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.mark.parametrize("name", ["fp8 dynamic", "nvfp4", "w4a16 asymmetric"])
def test_experts_of_a_layer_in_several_files(tmp_path: Path, name: str) -> None:
    p, _, plain = made(tmp_path / "hf", name, seed=7)
    sharded(tmp_path / "hf", 5)
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "hf"), p, plain)


@pytest.mark.parametrize("name", ["fp8 tensor", "fp8 dynamic", "nvfp4", "w4a16"])
@pytest.mark.parametrize("where", ["auto", "cpu", "disk"])
def test_device_maps(tmp_path: Path, name: str, where: str) -> None:
    p, _, plain = made(tmp_path / "hf", name, seed=8)
    if "vision_encoder" not in p:
        pytest.skip("text only")
    parts = ("model.vision_tower", "model.multi_modal_projector", f"{INNER[:-7]}.embed_tokens", f"{INNER}.0")
    homes = dict.fromkeys((*parts, f"{INNER[:-7]}.norm", "lm_head"), "cpu") | {f"{INNER}.1": "disk"}
    model = Small4ForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, device_map=homes if where == "disk" else where, offload_folder=tmp_path
    )
    host = rc.host_model(p, rc.dequantized(plain))
    with torch.no_grad():
        for batch in rc.inputs(p):
            expected, found = host(**batch).logits, model(**batch).logits
            torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_scales_of_caches_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are for engines with keys and values in 8 bits, and change no weight."""
    encode, entry, _ = KEPT["fp8 dynamic"]
    p = rc.params()
    stored, plain = d.derive(p, rc.weights(p), encode)
    for layer in range(p["n_layers"]):
        stored |= {f"{INNER}.{layer}.self_attn.{kind}_scale": torch.tensor([0.5]) for kind in "kv"}
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    d.write_folder(tmp_path / "hf", p, stored, entry | {"kv_cache_scheme": scheme})
    model = Small4ForCausalLM.from_pretrained(tmp_path / "hf")
    check_logits(model, p, plain)
    (said,) = [record.message for record in caplog.records if "keys and values" in record.message]
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))["quantization_config"]
    assert saved == entry | {"kv_cache_scheme": None}
    assert f"{2 * p['n_layers']} scales" in said
    assert "layers.0.self_attn.k_scale" in said
    caplog.clear()
    notes: list[str] = []
    convert(tmp_path / "hf", tmp_path / "ours", note=notes.append)
    (said,) = [note for note in notes if "keys and values" in note]
    assert all(f"layers.{layer}.self_attn.{kind}_scale" in said for layer in range(p["n_layers"]) for kind in "kv")
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "ours"), p, plain)
    assert "keys and values" not in caplog.text


@pytest.mark.parametrize("named", [True, False], ids=["expert_memory", "silent"])
def test_experts_on_disk_have_to_be_fused(tmp_path: Path, named: bool) -> None:
    p, _, plain = made(tmp_path / "hf", "nvfp4", seed=9)
    if named:
        with pytest.raises(ValueError, match=f"expert_memory.*small4 convert {tmp_path / 'hf'} DST"):
            Small4ForCausalLM.from_pretrained(tmp_path / "hf", expert_memory="1MB")
    else:
        check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "hf", expert_memory=False), p, plain)


MIXED: dict[str, tuple[tuple[str, partial[d.Encoded]], ...]] = {
    "attention FP8, experts NVFP4": ((".attention.", partial(d.fp8, "channel")), ("experts.", partial(d.nvfp4))),
    "experts only": ((".experts.", partial(d.compressed_int, 16, 4, True)),),
    "one layer plain": (("layers.1.", partial(d.nvfp4)),),
    "shared experts plain": ((".attention.", partial(d.fp8, "tensor")), (".experts.", partial(d.fp8, "tensor"))),
    "gate and up FP8, down 4 bits": (
        (".w1.", partial(d.fp8, "channel")),
        (".w3.", partial(d.fp8, "channel")),
        (".w2.", partial(d.compressed_int, 16, 4, False)),
    ),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("seed", [1, 2])
def test_layers_in_several_forms(tmp_path: Path, name: str, seed: int) -> None:
    """Of one checkpoint, as recipes with `ignore` lists and several groups leave it."""
    p = rc.params(**sizes("", seed))
    raw = rc.weights(p, seed)

    def encoder(name_of: str) -> partial[d.Encoded] | None:
        shared = "shared" in name_of and name == "shared experts plain"
        return next((encode for part, encode in MIXED[name] if part in name_of and not shared), None)

    stored, plain = d.unfused(p, raw), dict(raw)
    for raw_name, tensor in raw.items():
        encode = encoder(raw_name) if rc.quantized(raw_name, tensor) else None
        if encode is not None:
            parts, numbers = encode(tensor)
            plain[raw_name] = numbers.to(tensor.dtype)
            stem = d.unfused_name(raw_name).removesuffix(".weight")
            del stored[f"{stem}.weight"]
            stored |= {f"{stem}.{ending}": part for ending, part in parts.items()}
    words = ("float-quantized", "nvfp4-pack-quantized", "pack-quantized")
    groups = {f"group_{i}": {"targets": ["Linear"], "format": word} for i, word in enumerate(words)}
    entry = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    d.write_folder(tmp_path / "hf", p, stored, entry | {"ignore": ["re:.*some.*"]})
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "hf"), p, plain)
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "hf", dequantize=True), p, plain)
