"""What a configuration says about quantization, for transformers' loading: which of its entries mean stored weights.

Knows the keys and values of `config.json`; no tensors.
"""

from collections.abc import Sequence
from typing import Any

from transformers.utils.quantization_config import FineGrainedFP8Config

METHOD = "small4_stored"
# What transformers itself loads into this model. Everything else is handled here: held, or refused by name.
_HOST_METHODS = ("bitsandbytes", "torchao", "small4_int4", METHOD)
# The methods whose weights are held, by what they are called in `config.json`, and the formats of the second.
HELD_METHODS = ("fp8", "compressed-tensors")
HELD_FORMATS = ("float-quantized", "naive-quantized", "nvfp4-pack-quantized", "pack-quantized", "mixed-precision")


class Small4StoredConfig(FineGrainedFP8Config):
    """The `quantization_config` of a checkpoint whose weights are held as stored, or expanded if `dequantize`.

    A subclass of transformers' FP8 configuration, because only then a caller's `dequantize` reaches a checkpoint that
    has its own entry. It is saved as the entry from which it was made.

    Args:
        entry: `quantization_config` of `config.json`, word for word.
        dequantize: Expand all weights while loading.
    """

    def __init__(self, entry: dict[str, Any] | None = None, dequantize: bool = False) -> None:
        self.entry = dict(entry or {})
        self.quant_method = METHOD
        self.dequantize = dequantize or bool(self.entry.get("dequantize"))

    @property
    def method(self) -> str | None:
        """The quantization method, as the checkpoint calls it."""
        method = self.entry.get("quant_method")
        return method.replace("compressed_tensors", "compressed-tensors") if isinstance(method, str) else method

    def integers(self) -> list[dict[str, Any]]:
        """What compressed-tensors announces about weights in integers, one entry for each group of layers."""
        groups = self.entry.get("config_groups")
        entries = groups.values() if isinstance(groups, dict) else ()
        weights = [group.get("weights") for group in entries if isinstance(group, dict)]
        return [each for each in weights if isinstance(each, dict) and each.get("type") == "int"]

    def get(self, name: str, default: object = None) -> Any:
        """As of a dictionary: transformers asks for `quant_method` so."""
        return getattr(self, name, default)

    def get_loading_attributes(self) -> dict[str, Any]:
        """The settings of a checkpoint's entry that a caller may change."""
        return {"dequantize": self.dequantize}

    def to_dict(self) -> dict[str, Any]:
        """The entry."""
        return dict(self.entry)

    def without(self, paths: Sequence[str]) -> "Small4StoredConfig":
        """The same, but that the modules of these names are not quantized."""
        key = "modules_to_not_convert" if self.method == "fp8" else "ignore"
        ignored = list(self.entry.get(key) or [])
        more = [path for path in paths if path not in ignored]
        return Small4StoredConfig(self.entry | {key: ignored + more}, self.dequantize)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Small4StoredConfig) and (self.entry, self.dequantize) == (
            other.entry,
            other.dequantize,
        )

    __hash__ = None  # type: ignore[assignment]


def stored_entry(entry: object) -> Any:
    """Turns a `quantization_config` from `config.json` into a `Small4StoredConfig`, unless transformers loads it
    itself.
    """
    if not isinstance(entry, dict) or entry.get("quant_method") in _HOST_METHODS:
        return entry
    if entry.get("load_in_8bit") or entry.get("load_in_4bit"):
        return entry
    return Small4StoredConfig(entry)


def refuse_unknown(config: Small4StoredConfig) -> None:
    """Raise ValueError for a quantization that is not read, and say what to do."""
    method, words = config.method, config.entry.get("format")
    if config.entry.get("transform_config"):
        raise ValueError(
            "quantization_config has a transform_config: the weights are rotated, and inputs would have to be rotated "
            "with them, which is not read. Quantize the model without transforms."
        )
    groups = config.entry.get("config_groups")
    inner = (
        [group.get("format") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    if method not in HELD_METHODS:
        says = f"quant_method={method!r}" if method or "bits" not in config.entry else "what MLX writes"
        raise ValueError(
            f"quantization_config says {says}, which from_pretrained does not read; it reads "
            f"{' and '.join(HELD_METHODS)}. "
            "Convert the checkpoint first: small4 convert SRC DST."
        )
    unknown = [word for word in (words, *inner) if word is not None and word not in HELD_FORMATS]
    if method == "compressed-tensors" and unknown:
        raise ValueError(
            f"quantization_config says format={unknown[0]!r} of compressed-tensors, which from_pretrained does not "
            "read; it reads "
            f"{', '.join(HELD_FORMATS)}. Convert the checkpoint first: small4 convert SRC DST."
        )
