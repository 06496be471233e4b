"""What llama.cpp has to be told about an export: its own arithmetic, written out here, must come to ours with it, and
not without.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from oracle import Case
from small4_conversion.convert import Options, convert
from small4_conversion.llama_cpp import arguments, overrides

from modeling_small4 import Small4Config, Small4Processor, demo_checkpoint


def in_llama_cpp(config: Small4Config, told: dict[str, Any]) -> tuple[float, float]:
    """Rotary amplitude and softmax scale that llama.cpp (of llama-cpp-python 0.3.36) computes with: `llama_context`'s
    constructor, `ggml_rope`'s `rope_yarn`, and the graph of `deepseek2`, which `mistral4` shares. `log_mul` is what its
    converter writes."""
    rope, width = config.text_config.rope_parameters, config.text_config.qk_head_dim
    factor = rope["factor"]
    log_mul = 1.0 if config.text_config.softmax_scale_rule == "transformers" else 0.0

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1

    attn_factor = magnitude(1.0) / magnitude(log_mul) if log_mul else magnitude(1.0)
    attn_factor /= 1 + 0.1 * math.log(factor)
    attn_factor *= told.get("mistral4.rope.scaling.attn_factor", 1.0)
    amplitude = attn_factor * (1 + 0.1 * math.log(factor))
    mscale = amplitude * (1 + 0.1 * log_mul * math.log(factor))
    return amplitude, mscale**2 / math.sqrt(width)


@pytest.mark.parametrize("factor", [1.0, 4.0, 16.0, 128.0])
@pytest.mark.parametrize("rule", ["released", "transformers"])
def test_amplitude_and_scale_are_ours(rule: str, factor: float) -> None:
    rope = {"rope_type": "yarn", "factor": factor, "rope_theta": 10000.0, "original_max_position_embeddings": 8192}
    config = Small4Config(text_config={"softmax_scale_rule": rule, "rope_parameters": rope}, vision_config=None)
    amplitude, scale = in_llama_cpp(config, overrides(config))
    assert amplitude == pytest.approx(1, rel=1e-12)
    assert scale == pytest.approx(config.text_config.softmax_scale, rel=1e-12)
    if rule == "released" and factor > 1:
        amplitude, scale = in_llama_cpp(config, {})
        assert amplitude > 1.1
        assert scale > 1.2 * config.text_config.softmax_scale


def test_the_release() -> None:
    told = overrides(Small4Config())
    assert told == {
        "mistral4.rope.scaling.attn_factor": pytest.approx(0.6733086, abs=1e-7),
        "mistral4.attention.temperature_scale": 0.1,
        "mistral4.attention.temperature_length": 8192,
    }
    assert arguments(Small4Config()) == (
        "--override-kv mistral4.rope.scaling.attn_factor=float:0.67330862 "
        "--override-kv mistral4.attention.temperature_scale=float:0.1 "
        "--override-kv mistral4.attention.temperature_length=int:8192"
    )


def test_nothing_to_tell() -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": None}
    config = Case().config()
    config.text_config.rope_parameters = rope
    assert overrides(config) == {}


def test_an_exported_folder_has_what_its_converter_reads(tmp_path: Path) -> None:
    notes: list[str] = []
    convert(demo_checkpoint(), tmp_path / "hf", Options(to="transformers"), notes.append)
    assert any(arguments(Small4Config.from_pretrained(demo_checkpoint())) in note for note in notes)
    images = json.loads((tmp_path / "hf" / "processor_config.json").read_text())["image_processor"]
    own = Small4Processor.from_pretrained(demo_checkpoint()).image_processor
    assert (images["image_mean"], images["image_std"]) == (list(own.image_mean), list(own.image_std))
    convert(demo_checkpoint(), tmp_path / "raw", Options(to="mistral"), notes.append)
    assert sum("--override-kv" in note for note in notes) == 1
