"""Scaled-down copies of the official releases, and of 4-bit copies in the raw layout, from the release's files to an
answer and back: real names, dtypes and shapes of scales, random sizes.

Raw files -> `small4 convert` -> `from_pretrained` (held as stored) -> answers as the expanded weights and as
transformers' classes -> `save_pretrained` and the raw layout again, bit for bit.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import check_logits, equal
from PIL import Image
from transformers import AutoModelForCausalLM, pipeline

from modeling_small4 import Small4ForCausalLM, Small4Processor
from modeling_small4.commands import cli
from modeling_small4.stored_experts import Small4StoredExperts
from modeling_small4.stored_layers import Small4StoredLinear

INNER = "model.language_model"
GREEDY: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}
Stored = tuple[dict[str, Any], rc.Tensors, rc.Tensors]  # params.json, what is stored, the plain tensors it stands for


def bf16(p: dict[str, Any], raw: rc.Tensors) -> Stored:
    return p, raw, raw


def fp8(p: dict[str, Any], raw: rc.Tensors) -> Stored:
    stored = rc.to_fp8(raw)
    return rc.fp8_params(p), stored, rc.dequantized(stored)


def nvfp4(p: dict[str, Any], raw: rc.Tensors) -> Stored:
    return rc.nvfp4_params(p), *rc.to_nvfp4(raw)


def int4(symmetric: bool) -> Callable[[dict[str, Any], rc.Tensors], Stored]:
    def make(p: dict[str, Any], raw: rc.Tensors) -> Stored:
        stored, plain = dict(raw), dict(raw)
        for name, tensor in raw.items():
            if rc.quantized(name, tensor):
                parts, numbers = d.compressed_int(32, 4, symmetric, tensor)
                stem, plain[name] = name.removesuffix(".weight"), numbers.bfloat16()
                del stored[name]
                stored |= {f"{stem}.{end}": part for end, part in parts.items()}
        return p | {"quantization_config": d.int_entry(32, 4, symmetric)}, stored, plain

    return make


RELEASES = {"BF16": bf16, "FP8": fp8, "NVFP4": nvfp4, "int4": int4(True), "int4 asymmetric": int4(False)}


def sizes(seed: int) -> dict[str, Any]:
    """Every width a multiple of 32, as the release's are; all else at random."""
    draw = random.Random(seed).choice
    heads, patch, merge = draw((2, 4, 6)), draw((8, 14)), draw((2, 3))
    return {
        "dim": draw((64, 96)), "n_layers": draw((2, 3)), "n_heads": heads, "n_kv_heads": heads,
        "q_lora_rank": draw((32, 64)), "kv_lora_rank": draw((32, 64)), "qk_nope_head_dim": draw((16, 48)),
        "qk_rope_head_dim": draw((16, 32)), "v_head_dim": 16 * draw((1, 2)) if heads > 2 else 32,
        "moe": {"num_experts": draw((4, 6, 9)), "num_experts_per_tok": draw((1, 2, 3)),
                "expert_hidden_dim": draw((32, 96)), "num_shared_experts": draw((1, 2))},
        "tower": {"patch_size": patch, "spatial_merge_size": merge, "num_attention_heads": draw((2, 3)),
                  "adapter_bias": draw((True, False)), "image_size": 4 * patch * merge,
                  "max_image_size": 4 * patch * merge},
    }  # fmt: skip


@dataclass
class Release:
    """A raw folder, what was made of it, and what is in it."""

    name: str
    raw: Path
    ours: Path
    expanded: Path
    params: dict[str, Any]
    stored: rc.Tensors
    plain: rc.Tensors


# Sizes are drawn once for each, and once more for the official quantized ones.
DRAWN = [*((name, 11 + place % 2) for place, name in enumerate(RELEASES)), ("FP8", 11), ("NVFP4", 12)]


@pytest.fixture(scope="module", params=DRAWN, ids=str)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    name, seed = request.param
    folder = tmp_path_factory.mktemp("release")
    p = rc.params(**sizes(seed))
    p, stored, plain = RELEASES[name](p, rc.weights(p, seed))
    rc.write_raw(folder / "raw", p, stored, shards=3)
    for target, dtype in (("ours", "keep"), ("expanded", "bfloat16")):
        assert cli.main(["convert", str(folder / "raw"), str(folder / target), "--dtype", dtype]) in (0, None)
    return Release(name, folder / "raw", folder / "ours", folder / "expanded", p, stored, plain)


@pytest.fixture(scope="module")
def held(release: Release) -> Any:
    return Small4ForCausalLM.from_pretrained(release.ours, dtype=torch.float32)


@pytest.fixture(scope="module")
def whole(release: Release) -> Any:
    return Small4ForCausalLM.from_pretrained(release.expanded, dtype=torch.float32)


def batches(release: Release) -> list[dict[str, torch.Tensor]]:
    """Text in two rows, the first padded on the left; and two images."""
    text, images = rc.inputs(release.params)
    mask = torch.ones_like(text["input_ids"])
    mask[0, :9] = 0
    return [text | {"attention_mask": mask}, images]


def same_logits(one: Any, other: Any, batch: dict[str, torch.Tensor]) -> None:
    rows = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    with torch.no_grad():
        found, expected = one(**batch).logits[rows], other(**batch).logits[rows]
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_what_is_held(release: Release, held: Any) -> None:
    """Codes are stored, of experts, shared experts and attention as the release has them; nothing is expanded."""
    modules = dict(held.named_modules())
    layer = modules[f"{INNER}.layers.1"]
    attention = release.name not in ("BF16", "NVFP4")
    for module, kind, yes in (
        (layer.mlp.experts, Small4StoredExperts, release.name != "BF16"),
        (layer.mlp.shared_experts.up_proj, Small4StoredLinear, release.name != "BF16"),
        (layer.self_attn.kv_b_proj, Small4StoredLinear, attention),
        (held.lm_head, Small4StoredLinear, False),
    ):
        assert isinstance(module, kind) == yes
    if release.name == "NVFP4":
        given = [layer.mlp.experts.gate_up_proj_input_global_scale, layer.mlp.shared_experts.up_proj.input_global_scale]
        assert [scale.dtype for scale in given] == [torch.float32, torch.bfloat16]


def test_logits_are_transformers(release: Release) -> None:
    for folder in (release.ours, release.expanded):
        check_logits(AutoModelForCausalLM.from_pretrained(folder), release.params, release.plain)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_expanded_weights(release: Release, held: Any, whole: Any, attention: str) -> None:
    for model in (held, whole):
        model.set_attn_implementation(attention)
    for batch in batches(release):
        same_logits(held, whole, batch)
    for model in (held, whole):
        model.set_attn_implementation("sdpa")


def test_tokens_are_those_of_expanded_weights(release: Release, held: Any, whole: Any) -> None:
    """Each release as usual; how tokens are chosen does not depend on the form, so that one is tried in all ways."""
    others: list[dict[str, Any]] = [{"prefill_chunk_size": 16}, {"use_cache": False}, {"num_beams": 2}]
    for options in ({}, *(others if release.name == "NVFP4" else [])):
        for batch in batches(release):
            expected = whole.generate(**batch, **GREEDY, **options)
            assert torch.equal(held.generate(**batch, **GREEDY, **options), expected), options


@pytest.mark.parametrize("where", ["auto", "disk"])
def test_device_maps(release: Release, whole: Any, tmp_path: Path, where: str) -> None:
    parts = ("model.vision_tower", "model.multi_modal_projector", f"{INNER}.embed_tokens", f"{INNER}.norm", "lm_head")
    layers = range(release.params["n_layers"])
    homes = dict.fromkeys(parts, "cpu") | {f"{INNER}.layers.{i}": "disk" if i == 1 else "cpu" for i in layers}
    model = Small4ForCausalLM.from_pretrained(
        release.ours, dtype=torch.float32, device_map=homes if where == "disk" else "auto", offload_folder=tmp_path
    )
    for batch in batches(release):
        same_logits(model, whole, batch)


def chats(release: Release) -> list[list[dict[str, Any]]]:
    side = release.params["vision_encoder"]["max_image_size"]
    noise = Image.effect_noise((side, side // 2), 90).convert("RGB")
    text: list[dict[str, Any]] = [{"role": "user", "content": "How many lamps?"}]
    parts = [{"type": "image", "image": noise}, {"type": "text", "text": "What is it?"}]
    return [text, [{"role": "user", "content": parts}]]


@pytest.mark.parametrize("mode", ["none", "high"])
def test_chats_in_both_modes(release: Release, held: Any, whole: Any, mode: str) -> None:
    processor = Small4Processor.from_pretrained(release.ours)
    for chat in chats(release):
        inputs = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, reasoning_mode=mode
        )
        how = {"reasoning_mode": mode, "max_thinking_tokens": 4, "max_new_tokens": 8, "do_sample": False}
        found, expected = (model.generate(**inputs, **how) for model in (held, whole))
        assert torch.equal(found, expected)
        assert (processor.tokenizer.convert_tokens_to_ids("[THINK]") in found[0].tolist()) == (mode == "high")


def test_pipeline(release: Release, whole: Any) -> None:
    chat = [{"role": "user", "content": "How many lamps?"}]
    how = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    answers = [
        pipeline("text-generation", model=str(folder), dtype=torch.float32)(chat, **how)
        for folder in (release.ours, release.expanded)
    ]
    assert answers[0] == answers[1]


def test_the_command(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for folder in (release.ours, release.expanded):
        line = ["generate", "Hello", "--model", str(folder), "--max-new-tokens", "8", "--json"]
        assert cli.main([*line, "--reasoning-mode", "high", "--max-thinking-tokens", "3"]) in (0, None)
        answers.append({k: v for k, v in json.loads(capsys.readouterr().out).items() if k != "seconds"})
    assert answers[0] == answers[1]


def test_saved_bit_for_bit(release: Release, tmp_path: Path) -> None:
    Small4ForCausalLM.from_pretrained(release.ours).save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    rc.same_bits(rc.read_all(tmp_path / "saved"), rc.read_all(release.ours))
    assert cli.main(["convert", str(tmp_path / "saved"), str(tmp_path / "raw"), "--to", "mistral"]) in (0, None)
    rc.same_bits(rc.read_all(tmp_path / "raw"), release.stored)
    assert equal(tmp_path / "raw", release.raw)
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (release.ours, tmp_path / "saved"))
    assert first.get("quantization_config") == second.get("quantization_config")
