"""The planner's bytes of weights, caches and activations, against models that are really built."""

from pathlib import Path
from typing import Any

import pytest
import raw_checkpoint as rc
import torch
from oracle import Case
from peak_memory import peak_bytes
from safetensors.torch import load_file
from small4_conversion.convert import convert

from modeling_small4 import Small4Config, Small4ForCausalLM, attention, attention_blocks, demo_checkpoint
from modeling_small4.cache import LatentCache
from modeling_small4.planner import sizes
from modeling_small4.planner.layout import plan
from modeling_small4.planner.sizes import (
    LONG,
    PRECISIONS,
    Work,
    activation_bytes,
    cache_bytes,
    tensors,
    weight_bytes,
)

torch.set_num_threads(1)
RELEASE = Small4Config()
SHAPES: dict[str, Any] = {
    "release": {},
    "text only": {"vision_config": None},
    "tied": {"tie_word_embeddings": True},
    "odd": {
        "text_config": {"q_lora_rank": None, "first_k_dense_replace": 2, "n_shared_experts": 0, "attention_bias": True,
        "num_hidden_layers": 3},
        "multimodal_projector_bias": True,
    },
    "two shared experts": {"text_config": {"n_shared_experts": 2, "num_hidden_layers": 2, "v_head_dim": 96}},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_are_those_of_a_built_model(shape: str) -> None:
    config = Small4Config(**SHAPES[shape])
    with torch.device("meta"):
        model = Small4ForCausalLM(config).to(torch.bfloat16)
    built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {tensor.name: tensor.shape for tensor in tensors(config)} == built
    real = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert sum(weight_bytes(config, "bfloat16").values()) == real


def test_the_releases_numbers() -> None:
    assert sum(tensor.count for tensor in tensors(RELEASE)) == 119_401_298_944
    assert sum(tensor.count for tensor in tensors(Small4Config(vision_config=None))) == 118_972_826_624
    assert cache_bytes(RELEASE, 1) == 23_040
    assert cache_bytes(RELEASE, 262_144) == 5.625 * 2**30
    sizes = {precision: sum(weight_bytes(RELEASE, precision).values()) / 1e9 for precision in PRECISIONS}
    assert sizes["bfloat16"] == pytest.approx(238.8, rel=0.001)
    assert sizes["fp8"] == pytest.approx(119, rel=0.02)  # the published folder
    assert sizes["nvfp4"] == pytest.approx(70.80, rel=0.0002)
    assert sizes["int4"] == pytest.approx(65, rel=0.03)
    assert sizes["float32"] > sizes["bfloat16"] > sizes["int8"] > sizes["fp8"] > sizes["nvfp4"] > sizes["int4"]


def test_the_demo_checkpoint() -> None:
    model = Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.bfloat16)
    real = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert sum(weight_bytes(model.config).values()) == real


def test_low_precisions_are_those_of_the_published_forms(tmp_path: Path) -> None:
    """FP8 as the raw release and our own folder hold it, scales included; NVFP4 as published."""
    params = rc.params()
    raw = rc.weights(params)
    rc.write_raw(tmp_path / "raw", rc.fp8_params(params), rc.to_fp8(raw))
    convert(tmp_path / "raw", tmp_path / "ours")
    config = Small4Config.from_pretrained(tmp_path / "ours")
    stored = [tensor for file in (tmp_path / "ours").glob("*.safetensors") for tensor in load_file(file).values()]
    for held in (stored, rc.to_fp8(raw).values()):
        assert sum(tensor.nbytes for tensor in held) == sum(weight_bytes(config, "fp8").values())
    assert sum(tensor.nbytes for tensor in rc.to_nvfp4(raw)[0].values()) == sum(weight_bytes(config, "nvfp4").values())


@pytest.mark.parametrize("bits", [16, 8])
def test_cache_bytes_are_those_of_a_filled_cache(bits: int) -> None:
    model = Small4ForCausalLM(Case().config()).to(torch.bfloat16).eval()
    cache = LatentCache(model.config, bits=bits)
    with torch.no_grad():
        model(torch.randint(1000, 1100, (2, 37)), past_key_values=cache)
    made = plan(model.config, "1xH100", "bfloat16", context=37, batch=2, cache_bits=bits)
    assert made.loads[0].cache == cache.nbytes


def reader(**text: int) -> Small4ForCausalLM:
    sizes = {
        "vocab_size": 1100,
        "hidden_size": 256,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    sizes |= {"q_lora_rank": 64, "n_routed_experts": 8, "num_experts_per_tok": 4} | text
    torch.manual_seed(0)
    return Small4ForCausalLM(Small4Config(text_config=sizes, vision_config=None)).to(torch.bfloat16).eval()


@pytest.mark.parametrize(
    ("text", "chunk", "context", "fused"),
    [
        ({}, 512, 513, True),
        ({"num_attention_heads": 16}, 256, 2048, True),
        ({"hidden_size": 1024}, 512, 1024, True),
        ({"moe_intermediate_size": 512}, 512, 1024, True),
        ({}, 256, 1200, True),
        ({}, 256, 1200, False),
        ({}, 24, 1200, True),
        ({}, 24, 1200, False),
    ],
)
def test_activations_bound_what_a_forward_pass_holds(
    text: dict[str, int], chunk: int, context: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never less than the tensors alive at one time, and not much more. Without a fused kernel: as on a GPU."""
    for module in (attention, attention_blocks, sizes):  # long prompts, but short ones
        monkeypatch.setattr(module, "BLOCK", 256)
        monkeypatch.setattr(module, "LONG", 2**14 if context == 1200 else LONG, raising=False)
    monkeypatch.setattr(attention_blocks, "_fused", lambda device: fused)
    model = reader(**text)
    inner = model.config.text_config
    cache = LatentCache(model.config, capacity=context)
    for layer in range(inner.num_hidden_layers):
        held = torch.zeros(1, 1, context - chunk, inner.kv_lora_rank + inner.qk_rope_head_dim, dtype=torch.bfloat16)
        cache.update(held, None, layer)
    ids = torch.randint(1000, 1100, (1, chunk))
    known = [ids, *model.parameters(), *(store for layer in cache.layers for store in layer.stores)]
    with torch.no_grad():
        peak = peak_bytes(lambda: model(ids, past_key_values=cache, logits_to_keep=1), known)
    work = Work(chunk=chunk, context=context, fused=fused)
    assert work.blocked == (context == 1200)
    assert peak <= max(activation_bytes(model.config, work).values()) <= 1.6 * peak
