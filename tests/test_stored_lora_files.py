"""Files of LoRA on held weights: adapters that others read, merged checkpoints that say what they hold, and are
quantized again.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from small4_conversion.adapters import export_adapter, merge_adapter
from small4_conversion.convert import Options, convert
from stored_folder import FORMS, Folders
from test_stored_lora import adapted, batch
from transformers import AutoModelForCausalLM, Mistral3ForConditionalGeneration

from modeling_small4 import Small4ForCausalLM, demo_checkpoint, lora_targets, stored_lora
from modeling_small4.stored_experts import Small4StoredExperts
from modeling_small4.stored_layers import StoredModule
from modeling_small4.training.lora import EXPERTS

torch.set_num_threads(1)


@pytest.fixture(params=FORMS)
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> Folders:
    return stored_folder.write(tmp_path / "base", request.param)


def settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text("utf-8"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(**batch()).logits[1]


def near(found: torch.Tensor, expected: torch.Tensor, allowed: float = 1e-5) -> None:
    assert (found - expected).abs().max() < allowed * expected.abs().max()


def kinds(model: Any) -> list[type]:
    return [type(module) for module in model.modules() if isinstance(module, StoredModule)]


def test_the_adapters_settings_are_those_of_a_plain_base(folders: Folders, tmp_path: Path) -> None:
    for name in ("stored", "expanded"):
        adapted(getattr(folders, name)).save_pretrained(tmp_path / name)
    ours, theirs = (settings(tmp_path / name, "adapter_config.json") for name in ("stored", "expanded"))
    assert ours.pop("base_model_name_or_path") != theirs.pop("base_model_name_or_path")
    assert ours == theirs
    assert ours["target_parameters"] == EXPERTS
    again = LoraConfig.from_pretrained(str(tmp_path / "stored"))
    assert type(again) is LoraConfig


def test_transformers_loads_the_adapter_by_itself(folders: Folders, tmp_path: Path) -> None:
    held = adapted(folders.stored)
    held.save_pretrained(tmp_path)
    base = Small4ForCausalLM.from_pretrained(folders.expanded, dtype=torch.float32)
    base.load_adapter(str(tmp_path))
    near(logits(base), logits(held))
    base = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32)
    base.load_adapter(str(tmp_path), peft_config=stored_lora(LoraConfig.from_pretrained(str(tmp_path)), base))
    near(logits(base), logits(held))


def test_two_saved_adapters_load(folders: Folders, tmp_path: Path) -> None:
    held = adapted(folders.stored)
    settings = lora_targets("all+experts", model=held)
    held.add_adapter("second", stored_lora(LoraConfig(r=2, init_lora_weights=False, **settings), held))
    held.save_pretrained(tmp_path)
    base = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32)
    again: Any = PeftModel.from_pretrained(
        base, tmp_path, config=stored_lora(LoraConfig.from_pretrained(tmp_path), base)
    )
    again.add_adapter("second", stored_lora(LoraConfig.from_pretrained(tmp_path / "second"), again))
    again.load_adapter(tmp_path / "second", "second")
    for name in ("default", "second"):
        held.set_adapter(name)
        again.set_adapter(name)
        near(logits(again), logits(held))


def test_the_adapter_is_exported_for_transformers_class(folders: Folders, tmp_path: Path) -> None:
    held = adapted(folders.stored)
    held.save_pretrained(tmp_path / "adapter")
    convert(folders.expanded, tmp_path / "base-hf", Options(to="transformers"))
    export_adapter(tmp_path / "adapter", tmp_path / "adapter-hf", tmp_path / "base-hf")
    host = Mistral3ForConditionalGeneration.from_pretrained(tmp_path / "base-hf", dtype=torch.float32)
    near(logits(PeftModel.from_pretrained(host, tmp_path / "adapter-hf")), logits(held), 1e-4)


def test_a_merged_model_announces_no_quantization(folders: Folders, tmp_path: Path) -> None:
    held = adapted(folders.stored)
    expected = logits(held)
    merged = held.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in settings(tmp_path / "merged")
    again = Small4ForCausalLM.from_pretrained(tmp_path / "merged")
    assert kinds(again) == []
    near(logits(again), expected)


def test_what_is_not_merged_stays_quantized(folders: Folders, tmp_path: Path) -> None:
    held = adapted(folders.stored, targets="attention")
    before, expected = kinds(held), logits(held)
    merged = held.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    entry, given = (settings(folder)["quantization_config"] for folder in (tmp_path / "merged", folders.stored))
    key = "modules_to_not_convert" if entry["quant_method"] == "fp8" else "ignore"
    more = entry.pop(key)[len(given.pop(key)) :]
    assert entry == given
    assert len(more) == len(before) - len(kinds(merged))
    assert all(name.endswith("_proj") or name.endswith("_with_mqa") for name in more)
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert all(f"{name}.weight" in file.keys() for name in more)  # noqa: SIM118
    again = Small4ForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert kinds(again).count(Small4StoredExperts) == 2
    near(logits(again), expected)


@pytest.mark.parametrize("form", ["fp8", "fp8 blocks", "nvfp4 all", "int4 64"])
def test_what_is_merged_in_part_converts(form: str, tmp_path: Path) -> None:
    held = adapted(stored_folder.write(tmp_path / "base", form).stored, targets="attention")
    expected = logits(held)
    held.merge_and_unload().save_pretrained(tmp_path / "merged")
    convert(tmp_path / "merged", tmp_path / "plain", Options(dtype="float32"))
    near(logits(Small4ForCausalLM.from_pretrained(tmp_path / "plain")), expected)


def test_an_adapter_that_is_only_loaded_changes_no_announcement(folders: Folders, tmp_path: Path) -> None:
    model = adapted(folders.stored).unload()
    model.save_pretrained(tmp_path)
    assert settings(tmp_path)["quantization_config"] == settings(folders.stored)["quantization_config"]


@pytest.mark.parametrize("to", ["small4", "transformers", "mistral"])
def test_merged_and_quantized_again(to: str, tmp_path: Path) -> None:
    """The quantized merge is as near to the adapted model as the quantized base is to its own numbers."""
    folders = stored_folder.write(tmp_path / "base", "fp8", sizes={"vocab_size": 2024})
    held = adapted(folders.stored)
    held.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    expected = logits(held)
    near(logits(Small4ForCausalLM.from_pretrained(tmp_path / "merged")), expected)
    convert(tmp_path / "merged", tmp_path / "fp8", Options(to=to, dtype="fp8"))
    if to != "small4":
        shutil.copyfile(demo_checkpoint() / "tekken.json", tmp_path / "fp8" / "tekken.json")
        convert(tmp_path / "fp8", tmp_path / "back", Options())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / ("fp8" if to == "small4" else "back"), dtype=torch.float32)
    assert kinds(again).count(Small4StoredExperts) == 2
    assert torch.corrcoef(torch.stack([logits(again).flatten(), expected.flatten()]))[0, 1] > 0.98
    config = stored_lora(LoraConfig.from_pretrained(str(tmp_path / "adapter")), again)
    assert "mlp.experts.down_proj" in (config.target_parameters or ())
