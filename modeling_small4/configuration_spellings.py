"""Other layouts of a configuration read as Small 4's: dictionaries of `mistral3` and `mistral4`, older spellings of the
rotary settings, sub-configurations of transformers.

Works on dictionaries; never imports the configurations, tensors or paths.
"""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .configuration_checks import require
from .files_reading import shown

# Read from other layouts and then dropped: either derived here, or a statement about something that has one form only.
IGNORED_TEXT_KEYS = {"head_dim", "qk_head_dim", "partial_rotary_factor", "pretraining_tp", "sliding_window"}


def read_rope_parameters(given: dict[str, Any] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """One spelling of the rotary settings out of the several that configurations carry; a new dict every time.

    Settles amplitude (always 1 here) and magnitude keys: `attention_factor`, `mscale`, `mscale_all_dim` are dropped,
    see `softmax_scale_rule`. Legacy `rope_theta`, `type` and `llama_4_scaling` are folded in.
    """
    require(given is None or isinstance(given, dict), "rope_parameters", given, "it must be an object")
    rope = dict(given) if given else {"rope_type": "yarn", "factor": 128.0, "original_max_position_embeddings": 8192}
    legacy_type = rope.pop("type", "default")
    rope.setdefault("rope_type", legacy_type)
    theta = kwargs.pop("rope_theta", None)
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = 10000.0 if theta is None else theta
    scaling = kwargs.pop("llama_4_scaling", None) or {}
    require(isinstance(scaling, dict), "llama_4_scaling", scaling, "it must be an object")
    base = scaling.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    allowed = "query scaling and YaRN share one original_max_position_embeddings"
    require(base == rope.get("original_max_position_embeddings"), "llama_4_scaling", scaling, allowed)
    candidates = (rope.get("llama_4_scaling_beta"), kwargs.pop("llama_4_scaling_beta", None), scaling.get("beta"))
    rope["llama_4_scaling_beta"] = next((beta for beta in candidates if beta is not None), None if given else 0.1)
    if rope["rope_type"] == "yarn":
        for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            value = rope.get(name)  # 0 stands for the default in transformers too
            rope[name] = default if value is None or (value == 0 and not isinstance(value, bool)) else value
    for name in ("attention_factor", "mscale", "mscale_all_dim", "partial_rotary_factor", "max_position_embeddings"):
        rope.pop(name, None)
    return rope


def as_small4(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of `mistral3` around `mistral4`, or of a text-only `mistral4`, as one of `small4`.

    Raises:
        ValueError: The configuration of another model.
    """
    model_type = config.get("model_type", "small4")
    if model_type in ("mistral4", "small4_text"):
        outer = ("architectures", "dtype", "torch_dtype", "quantization_config", "tie_word_embeddings")
        inner = {key: value for key, value in config.items() if key not in ("architectures", "quantization_config")}
        kept = {key: config[key] for key in outer if key in config}
        config = {**kept, "text_config": inner, "vision_config": None}
    elif model_type not in ("small4", "mistral3"):
        raise ValueError(
            f"This is the configuration of a {shown(model_type)}; Small 4 reads small4, mistral3 and mistral4."
        )
    elif model_type == "mistral3" and "tie_word_embeddings" in config and isinstance(config.get("text_config"), dict):
        # transformers reads it at the top only
        config = config | {
            "text_config": config["text_config"] | {"tie_word_embeddings": config["tie_word_embeddings"]}
        }
    return {**config, "model_type": "small4"}


def sub_config(given: object, name: str, model_types: tuple[str, ...]) -> Any:
    """Accept `None`, a dict or one of our configurations; re-read those of transformers; refuse another model's."""
    ok = given is None or isinstance(given, (dict, PreTrainedConfig))
    require(ok, name, given, "it must be an object" + (" or None" if name == "vision_config" else ""))
    model_type = given.get("model_type") if isinstance(given, dict) else getattr(given, "model_type", None)
    if model_type is not None and model_type not in model_types:
        raise ValueError(
            f"{name} is of model type {shown(model_type)}; Small 4 takes {' or '.join(model_types)}, or a dict of its "
            "fields."
        )
    if isinstance(given, PreTrainedConfig) and model_type != model_types[0]:
        return given.to_dict()
    return given
