"""GGUF metadata that llama.cpp needs for an exported checkpoint beyond what its converter reads. Knows no tensors."""

import math

from modeling_small4.configuration_small4 import Small4Config


def overrides(config: Small4Config) -> dict[str, float | int]:
    """Metadata with which llama.cpp computes what `config` says, for a GGUF file made of the transformers layout.

    Checked with the llama.cpp of llama-cpp-python 0.3.36. It has no setting for YaRN without magnitude correction:
    where `mscale_all_dim` is 0, `llama_context` uses the rotary amplitude 0.1 ln(factor) + 1, and its graph also
    multiplies the softmax scale by its square. `rope.scaling.attn_factor` multiplies both, so the inverse of that
    amplitude leaves 1 and 1. Its converter also leaves out the query scale of long positions, which is in
    `attention.temperature_*`.
    """
    text, out = config.text_config, {}
    rope = text.rope_parameters
    if rope["rope_type"] == "yarn" and text.softmax_scale_rule == "released":
        out["mistral4.rope.scaling.attn_factor"] = 1 / (0.1 * math.log(max(rope["factor"], 1.0)) + 1)
    if beta := rope.get("llama_4_scaling_beta"):
        out["mistral4.attention.temperature_scale"] = float(beta)
        out["mistral4.attention.temperature_length"] = int(rope["original_max_position_embeddings"])
    return out


def arguments(config: Small4Config) -> str:
    """The same as arguments of `llama-quantize`, which keeps them in the file it writes, or of `llama-server`."""
    kinds = {float: "float", int: "int"}
    words = (f"--override-kv {key}={kinds[type(value)]}:{value:.9g}" for key, value in overrides(config).items())
    return " ".join(words)
