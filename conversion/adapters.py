"""Exports LoRA adapters: merged into a checkpoint of any layout, or alone for transformers' own classes.

    merge_adapter("adapter", Path("merged"), to="mistral")               # or "transformers", "small4"
    export_adapter("adapter", Path("adapter-hf"), base=Path("base-hf"))  # base-hf: small4 convert BASE base-hf --to
    transformers

Knows names and configurations; the arithmetic is PEFT's (extra `train`), which is imported only when it is used.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_small4.configuration_small4 import Small4Config
from modeling_small4.files_reading import shown
from modeling_small4.training.lora import EXPERTS

from .bundle import TOKENIZER_FILES, VERBATIM
from .checkpoint import CheckpointError, read_json
from .convert import Options, Summary, convert
from .naming import to_transformers
from .staging import MERGING, check_destination, new_folder, private_folder
from .transformers_layout import MODEL_TYPES, config_from_transformers

_PREFIX = "base_model.model."
_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def merge_adapter(
    adapter: str | Path, out: Path, to: str = "small4", dtype: torch.dtype | str = "auto", overwrite: bool = False
) -> Summary:
    """Add an adapter to its base checkpoint and write the result as a checkpoint folder in layout `to`.

    The base is the one that the adapter's configuration names. The whole model is held in memory, quantized weights
    expanded; `dtype` is what it is merged and written in ("auto": the base's own, and bfloat16 for quantized ones).
    `small4 convert OUT DST --dtype fp8` quantizes it again.

    Raises:
        CheckpointError: The adapter or its base is missing or belongs to another model, or `out` exists. Nothing is
            left behind.
        ValueError: PEFT is missing.
    """
    peft = _peft()
    folder, settings = read_adapter(adapter)
    base = Path(settings["base_model_name_or_path"])
    check_destination(out, base, overwrite)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, dequantize=True)
    merged = peft.PeftModel.from_pretrained(model, folder).merge_and_unload(safe_merge=True)
    with private_folder(out, MERGING) as private:
        (scratch := private / "merged").mkdir()
        merged.save_pretrained(scratch)
        for name in (*TOKENIZER_FILES, *VERBATIM):
            if (base / name).is_file():
                shutil.copyfile(base / name, scratch / name)
        return convert(scratch, out, Options(to=to, overwrite=overwrite))


def export_adapter(adapter: str | Path, out: Path, base: Path) -> None:
    """Write an adapter for transformers' own class on `base`, the base checkpoint in transformers' layout, with equal
    results.

    Names follow transformers' class, and the targets are spelled out. An adapter cannot change how attention scores are
    scaled, so this checks that both sides scale them alike.

    Raises:
        CheckpointError: `base` is not a transformers folder, has other sizes, or transformers would scale its attention
            scores differently (as it does with the published config.json: convert the base with `small4 convert BASE
            OUT --to transformers`, which writes the scale explicitly); or `out` exists.
    """
    folder, settings = read_adapter(adapter)
    check_destination(out, base, overwrite=False)
    ours = AutoConfig.from_pretrained(settings["base_model_name_or_path"])
    text_only = _check_base(ours, base)
    weights = {
        _PREFIX + to_transformers(name.removeprefix(_PREFIX), text_only): tensor
        for name, tensor in load_file(folder / _WEIGHTS).items()
    }
    settings |= {"base_model_name_or_path": str(base), "auto_mapping": None}
    settings["target_modules"] = sorted(
        {
            name.removeprefix(_PREFIX).split(".lora_")[0]
            for name in weights
            if ".lora_" in name and ".mlp.experts." not in name
        }
    )
    if settings.get("target_parameters"):
        settings["target_parameters"] = list(EXPERTS)
    with new_folder(out, overwrite=False) as new:
        save_file(weights, new / _WEIGHTS, metadata={"format": "pt"})
        (new / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_adapter(adapter: str | Path) -> tuple[Path, dict[str, Any]]:
    folder = Path(adapter)
    for name in (_SETTINGS, _WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: missing; give the folder that save_pretrained of a PEFT model wrote"
            )
    settings = read_json(folder / _SETTINGS)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder / _SETTINGS}: peft_type is {shown(settings.get('peft_type'))}, not 'LORA'")
    if not settings.get("base_model_name_or_path"):
        raise CheckpointError(f"{folder / _SETTINGS}: names no base_model_name_or_path; write the base's folder there")
    return folder, settings


def _check_base(ours: object, base: Path) -> bool:
    """Whether the base is text-only, after checking that it is the same model with the same computation."""
    file = base / "config.json"
    if not isinstance(ours, Small4Config):
        raise CheckpointError(f"the adapter's base is a {type(ours).__name__}, not a Small 4 of this package")
    given = read_json(file)
    if given.get("model_type") not in MODEL_TYPES:
        raise CheckpointError(
            f"{file}: model_type is {shown(given.get('model_type'))}; make the base with small4 convert BASE OUT --to "
            "transformers"
        )
    theirs, _ = config_from_transformers(given, "transformers", has_head=True, file=file)
    sizes = (*("hidden_size", "num_hidden_layers", "n_routed_experts", "moe_intermediate_size", "vocab_size"),)
    for name in (*sizes, "softmax_scale"):
        wanted, found = getattr(ours.text_config, name), getattr(theirs.text_config, name)
        if abs(wanted - found) > 1e-6 * abs(wanted):
            raise CheckpointError(
                f"{file}: {name} is {found} there and {wanted} in the adapter's base, so results would differ; make "
                "the base with "
                "small4 convert BASE OUT --to transformers"
            )
    return given["model_type"] == "mistral4"


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ValueError('Adapters need PEFT: pip install ".[train]"') from None
    return peft
