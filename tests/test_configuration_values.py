"""Values that no configuration can have are refused at once, in one line that names the field."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from modeling_small4 import Small4Config, Small4TextConfig, Small4VisionConfig

NAN, HUGE = math.nan, 10**4999
WRONG_KINDS: list[Any] = ["x", [], [1], {}, {"x": 1}, "x" * 5000, "\ud800"]
NUMBERS: list[Any] = [NAN, math.inf, -math.inf, -1, HUGE, -HUGE]
TEXT: dict[str, list[Any]] = {
    "routed_scaling_factor": NUMBERS,
    "initializer_range": [*NUMBERS, 1.5],
    "attention_dropout": [*NUMBERS, 1.5],
    "first_k_dense_replace": [-1, 0.5, 10**12, True],
    "rms_norm_eps": [*NUMBERS, 0],
    "router_aux_loss_coef": NUMBERS,
    "router_z_loss_coef": NUMBERS,
    "num_hidden_layers": [0, -1, 10**12, HUGE, True],
    "n_routed_experts": [0, 10**12],
    "hidden_size": [0, -1, 10**12, HUGE, 0.5],
    "vocab_size": [0, 10**24],
    "q_lora_rank": [0, -1, 10**24],
    "num_key_value_heads": [3, HUGE],
    "n_group": [0, -1, 3, 0.5],
    "topk_group": [0, 2],
    "hidden_act": ["swiglu_2", ""],
    "pad_token_id": [10**9],
    "max_position_embeddings": [0, -1, HUGE],
}
VISION: dict[str, list[Any]] = {
    "hidden_act": ["nope", ""],
    "attention_dropout": [*NUMBERS, 7],
    "rms_norm_eps": [*NUMBERS, 0],
    "num_hidden_layers": [0, 10**12],
    "image_size": [0, HUGE, 3],
    "patch_size": [0, 10**12],
}
TOP: dict[str, list[Any]] = {
    "projector_hidden_act": ["nope", ""],
    "spatial_merge_size": [0, -1, 10**9],
    "image_token_index": [-1, HUGE],
    "vision_feature_layer": [10**9, -(10**9)],
    "architectures": [5],
    "auto_map": [5],
    "dtype": [5, "nope"],
    "quantization_config": [5],
    "id2label": [5],
    "text_config": [5, True],
    "vision_config": [5, True],
}
ROPE: dict[str, list[Any]] = {
    "rope_type": ["x", 5, None],
    "rope_theta": [*NUMBERS, 0, 1],
    "factor": [*NUMBERS, 0],
    "original_max_position_embeddings": [*NUMBERS, 0],
    "beta_fast": NUMBERS,
    "beta_slow": NUMBERS,
    "llama_4_scaling_beta": NUMBERS,
    "truncate": [5],
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
OBJECTS = ("auto_map", "quantization_config", "text_config", "vision_config", "id2label")  # any object will do here


def refused(make: Any, field: str, **fields: Any) -> str:
    with pytest.raises(ValueError, match=field) as caught:
        make(**fields)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 450
    message.encode()
    return message


def kinds(field: str) -> list[Any]:
    return [value for value in WRONG_KINDS if field not in OBJECTS or not (value == [] or isinstance(value, dict))]


@pytest.mark.parametrize("field", TEXT)
def test_text(field: str) -> None:
    for value in TEXT[field] + kinds(field):
        refused(Small4TextConfig, field, **{field: value})


@pytest.mark.parametrize("field", VISION)
def test_vision(field: str) -> None:
    for value in VISION[field] + kinds(field):
        refused(Small4VisionConfig, field, **{field: value})


@pytest.mark.parametrize("field", TOP)
def test_top(field: str) -> None:
    for value in TOP[field] + ([] if field == "architectures" else kinds(field)):
        refused(Small4Config, field, **{field: value})


@pytest.mark.parametrize("field", ROPE)
def test_rotary_settings(field: str) -> None:
    for value in ROPE[field] + WRONG_KINDS:
        if value == [] and field == "rope_theta":
            continue
        refused(
            Small4TextConfig,
            field
            if field != "original_max_position_embeddings"
            else "original_max_position_embeddings|llama_4_scaling",
            rope_parameters=YARN | {field: value},
        )
    for value in (5, "x", [1]):
        refused(Small4TextConfig, "rope_parameters", rope_parameters=value)
        refused(Small4VisionConfig, "rope_parameters", rope_parameters=value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text_config": {"hidden_act": "nope"}}, "hidden_act"),
        ({"text_config": {"hidden_size": "big"}}, "hidden_size"),
        ({"text_config": {"rope_parameters": 7}}, "rope_parameters"),
        ({"text_config": [1]}, "text_config"),
        ({"vision_config": {"num_hidden_layers": 10**12}}, "num_hidden_layers"),
        ({"projector_hidden_act": "nope"}, "projector_hidden_act"),
        ({"id2label": 5}, "id2label"),
        ({"text_config": {"model_type": "llama"}}, "llama"),
    ],
)
@pytest.mark.parametrize("read", [Small4Config.from_pretrained, AutoConfig.from_pretrained])
def test_a_file_is_named(tmp_path: Path, read: Any, change: dict[str, Any], field: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "small4"} | change))
    message = refused(read, field, pretrained_model_name_or_path=str(tmp_path))
    assert message.startswith(str(tmp_path / "config.json"))


@pytest.mark.parametrize("wrong", [{"routed_scaling_factor": []}, {"use_cache": 0}, {"softmax_scale_rule": []}])
def test_a_field_that_only_does_not_fit_the_defaults_is_not_blamed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        Small4TextConfig(num_attention_heads=4, num_key_value_heads=4, **wrong)
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        Small4TextConfig(num_key_value_heads=4, num_attention_heads=4, **wrong)
