"""Configuration: the released sizes, foreign spellings, refused sizes, and derived fields that cannot go stale."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, Mistral3Config, Mistral4Config, PixtralVisionConfig
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_small4 import Small4Config, Small4ForCausalLM, Small4TextConfig, Small4VisionConfig

# The release's config.json, as published (transformers' model types, `type` beside `rope_type`, magnitude keys, derived
# keys).
RELEASED = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "tie_word_embeddings": False,
    "vision_feature_layer": -1,
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "first_k_dense_replace": 0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "kv_lora_rank": 256,
        "max_position_embeddings": 1048576,
        "model_type": "mistral4",
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 36,
        "num_key_value_heads": 32,
        "pad_token_id": 11,
        "q_lora_rank": 1024,
        "qk_head_dim": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_interleave": True,
        "rope_parameters": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 128.0,
            "llama_4_scaling_beta": 0.1,
            "max_position_embeddings": 1048576,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 8192,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
            "rope_type": "yarn",
            "type": "yarn",
        },
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
        "v_head_dim": 128,
        "vocab_size": 131072,
    },
    "vision_config": {
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "image_size": 1540,
        "intermediate_size": 4096,
        "model_type": "pixtral",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    },
}


def meta_parameters(config: Small4Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Small4ForCausalLM(config).parameters())


def shape_of(config: Small4Config) -> dict[str, Any]:
    """What decides the model, without bookkeeping."""
    out = config.to_dict()
    for part in (out, out["text_config"], out["vision_config"] or {}):
        for key in ("architectures", "dtype", "transformers_version", "_name_or_path"):
            part.pop(key, None)
    if out["vision_config"]:
        out["vision_config"]["rope_parameters"].pop("rope_type")
    return out


def test_released_model_has_the_released_number_of_parameters() -> None:
    assert meta_parameters(Small4Config()) == 119_401_298_944
    assert meta_parameters(Small4Config(vision_config=None)) == 118_972_826_624


def test_released_config_json_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config = Small4Config.from_pretrained(tmp_path)
    assert config.model_type == "small4"
    assert shape_of(config) == shape_of(Small4Config())
    assert meta_parameters(config) == 119_401_298_944


def test_reading_the_release_is_no_cause_for_a_warning(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    with CaptureLogger(logging.get_logger("transformers.configuration_utils")) as captured:
        Small4Config.from_pretrained(tmp_path)
    assert captured.out == ""


def test_another_model_is_refused(tmp_path: Path) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'llama'"):
        Small4Config.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("rope", "refused"),
    [
        ({"rope_scaling": {"rope_theta": 7.0}}, ""),
        ({"rope_scaling": {"type": "default", "rope_theta": 7.0}}, ""),
        ({"rope_theta": 7.0, "partial_rotary_factor": 1.0}, ""),
        ({"rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 1}}, ""),
        ({"rope_theta": 7.0, "partial_rotary_factor": 0.4}, "partial_rotary_factor=0.4"),
        ({"rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"type": "yarn"}}, "'yarn'"),
    ],
    ids=str,
)
def test_older_spellings_of_the_towers_positions(rope: dict[str, Any], refused: str) -> None:
    if refused:
        with pytest.raises(ValueError, match=refused):
            Small4VisionConfig(**rope)
        return
    config = Small4VisionConfig(**rope)
    assert config.rope_parameters["rope_theta"] == 7
    assert Small4VisionConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_older_spellings_give_the_same_model(tmp_path: Path) -> None:
    old = json.loads(json.dumps(RELEASED))
    text, vision = old["text_config"], old["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    del rope["rope_type"]
    text["rope_scaling"] = rope
    text["num_local_experts"] = text.pop("n_routed_experts")
    vision["rope_theta"] = vision.pop("rope_parameters")["rope_theta"]
    old["torch_dtype"] = old.pop("dtype")
    old["image_token_id"] = old.pop("image_token_index")
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert shape_of(Small4Config.from_pretrained(tmp_path)) == shape_of(Small4Config())


def test_configuration_objects_of_transformers_are_read() -> None:
    vision = PixtralVisionConfig(hidden_act="silu", patch_size=14, image_size=1540)
    host = Mistral3Config(text_config=Mistral4Config(), vision_config=vision, tie_word_embeddings=False)
    assert shape_of(Small4Config(text_config=host.text_config, vision_config=host.vision_config)) == shape_of(
        Small4Config()
    )


def test_text_only_mistral4_folder_has_no_tower(tmp_path: Path) -> None:
    Mistral4Config(num_hidden_layers=5).save_pretrained(tmp_path)
    config = Small4Config.from_pretrained(tmp_path)
    assert config.vision_config is None
    assert config.text_config.num_hidden_layers == 5
    assert config.model_type == "small4"


@pytest.mark.parametrize("config", [Small4Config(), Small4Config(text_config={"hidden_size": 64}, vision_config=None)])
def test_saving_and_loading_changes_nothing(config: Small4Config, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert "auto_map" not in (tmp_path / "config.json").read_text()
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is Small4Config
    assert shape_of(loaded) == shape_of(config)


def test_softmax_scale_follows_the_named_rule_alone() -> None:
    released = Small4TextConfig(rope_parameters=RELEASED["text_config"]["rope_parameters"])
    assert released.softmax_scale == pytest.approx(128**-0.5)
    corrected = Small4TextConfig(softmax_scale_rule="transformers")
    assert corrected.softmax_scale / released.softmax_scale == pytest.approx(2.2058, abs=1e-4)


def test_derived_fields_never_go_stale() -> None:
    config = Small4TextConfig()
    config.qk_rope_head_dim = 16
    assert config.head_dim == config.qk_head_dim == 80
    stale = Mistral4Config().to_dict() | {"qk_rope_head_dim": 16, "head_dim": 128, "qk_head_dim": 128}
    assert Small4Config(text_config=stale).text_config.head_dim == 80
    assert Small4VisionConfig(hidden_size=512, head_dim=64).head_dim == 32


def test_overriding_a_field_at_loading_keeps_the_rest(tmp_path: Path) -> None:
    Small4Config(text_config={"hidden_size": 64}).save_pretrained(tmp_path)
    config = Small4Config.from_pretrained(tmp_path, text_config={"qk_rope_head_dim": 16})
    assert (config.text_config.hidden_size, config.text_config.head_dim) == (64, 80)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"hidden_size": -4}, "positive"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"kv_lora_rank": 0}, "kv_lora_rank"),
        ({"q_lora_rank": -1}, "q_lora_rank"),
        ({"v_head_dim": 0}, "v_head_dim"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size"),
        ({"qk_rope_head_dim": 63}, "even"),
        ({"num_experts_per_tok": 129}, "at most 128"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ({"n_routed_experts": 0}, "n_routed_experts"),
        ({"n_group": 3}, "divide evenly"),
        ({"n_group": 4, "topk_group": 5}, "at most n_group=4"),
        ({"n_group": 64, "topk_group": 1}, "at most 2 experts"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"n_shared_experts": -1}, "n_shared_experts"),
        ({"first_k_dense_replace": 37}, "first_k_dense_replace"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'yarn' or 'default'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "original_max_position_embeddings"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": -2, "original_max_position_embeddings": 8}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "x", "original_max_position_embeddings": 8}}, "factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta"),
    ],
)
def test_text_sizes_that_cannot_work_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Small4Config(text_config=fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": 100}, "multiple of 4"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 512}, "multiple of 4"),
        ({"patch_size": 0}, "patch_size"),
        ({"image_size": 13}, "image_size"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "axial"),
    ],
)
def test_vision_sizes_that_cannot_work_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Small4Config(vision_config=fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"spatial_merge_size": 0}, "spatial_merge_size"),
        ({"image_token_index": 131072}, "vocab_size"),
        ({"vision_feature_layer": 30}, "24 layers"),
        ({"text_config": LlamaConfig()}, "llama"),
        ({"vision_config": {"model_type": "siglip"}}, "siglip"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Small4Config(**fields)


def test_unknown_softmax_rule_is_refused() -> None:
    with pytest.raises(Exception, match="softmax_scale_rule"):
        Small4TextConfig(softmax_scale_rule="guess")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("num_expert_per_tok", "num_experts_per_tok"),
        ("hiden_size", "hidden_size"),
        ("n_routed_expert", "n_routed_experts"),
        ("kv_lora_ranks", "kv_lora_rank"),
    ],
)
def test_misspelt_field_draws_a_warning_that_names_the_field(typed: str, meant: str) -> None:
    with pytest.warns(UserWarning, match=f"'{typed}'.*'{meant}'"):
        Small4TextConfig(**{typed: 3})


def test_size_made_wrong_after_construction_is_refused_by_the_model() -> None:
    config = Small4Config(vision_config=None)
    config.text_config.num_experts_per_tok = 500
    with pytest.raises(ValueError, match="num_experts_per_tok"), torch.device("meta"):
        Small4ForCausalLM(config)
