"""LoRA on weights that are held as stored, in two processes: DDP, FSDP2, and models that were loaded in parts. Losses
and the adapter are those of one process; what cannot be trained so is refused in a sentence.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stored_folder
import torch
from forked import together
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from stored_training_worker import FSDP, LOADED, TRIED, adapted, base_logits, by_trainer, rows
from transformers.integrations import deepspeed

from modeling_small4 import Small4ForCausalLM, lora_targets, stored_lora
from modeling_small4.stored_layers import StoredModule

TESTS = Path(__file__).resolve().parent
# With scalars; with scales in float32; with packed zeros; with adapters whose experts share a side.
FORMS = tuple(TRIED)
PAIRS = [(form, way) for form, ways in TRIED.items() for way in ways]
slow = pytest.mark.slow
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints, and what both processes found and saved."""
    root = tmp_path_factory.mktemp("training")
    (root / "folders").mkdir()
    (root / "out").mkdir()
    for seed, form in enumerate(FORMS):
        (root / form).mkdir()
        stored_folder.write(root / form, form.removesuffix(", shared"), seed).stored.rename(root / "folders" / form)
    together(TESTS / "stored_training_worker.py", str(root / "folders"), str(root / "out"))
    return root


@pytest.fixture(scope="module")
def ranks(run: Path) -> list[dict[str, Any]]:
    return [json.loads((run / "out" / f"report.{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(run: Path) -> dict[str, tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Of one process, by form: losses, the adapter before training and after it."""
    out = {}
    for form in FORMS:
        tuned = adapted(run / "folders" / form)
        before = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(tuned).items()}
        losses = by_trainer(tuned, run / "alone" / form)
        out[form] = (losses, before, load_file(run / "alone" / form / "adapter_model.safetensors"))
    return out


@slow
@pytest.mark.parametrize(("form", "way"), [pair for pair in PAIRS if not pair[1].endswith("bfloat16")])
def test_as_one_process(run: Path, ranks: list[dict[str, Any]], alone: Any, form: str, way: str) -> None:
    losses, before, after = alone[form]
    for rank in ranks:
        assert rank[form][way]["losses"] == pytest.approx(losses, rel=1e-6)
    found = load_file(run / "out" / f"{form}, {way}" / "adapter_model.safetensors")
    assert found.keys() == after.keys()
    for name, expected in after.items():
        moved = (expected - before[name]).norm()
        assert moved > 0, name
        assert (found[name] - expected).norm() < 1e-5 * moved, name


@slow
@pytest.mark.parametrize(("form", "way"), PAIRS)
def test_codes_are_divided(ranks: list[dict[str, Any]], form: str, way: str) -> None:
    for rank in ranks:
        assert rank[form][way]["share"] == (1.0 if way == "ddp" else 0.5)


@slow
@pytest.mark.parametrize(("form", "way"), [pair for pair in PAIRS if pair[1] in FSDP])
def test_nothing_is_cast_by_fsdp(ranks: list[dict[str, Any]], form: str, way: str) -> None:
    """Scales neither, to the bit; adapters load as they were saved; the gathered base cannot be saved as bytes."""
    for rank in ranks:
        assert rank[form][way]["comes back"]
        assert rank[form][way]["as before"]
        assert "cut over processes by FSDP; save the adapter" in rank[form][way]["refused"]


@pytest.mark.usefixtures("alone")  # which writes the adapter of one process
@slow
@pytest.mark.parametrize("way", ["ddp", "fsdp", *LOADED])
def test_the_gathered_adapter_loads_in_plain_peft(run: Path, way: str) -> None:
    base = Small4ForCausalLM.from_pretrained(run / "nvfp4 all" / "expanded", dtype=torch.float32)
    found = PeftModel.from_pretrained(base, run / "out" / f"nvfp4 all, {way}").eval()
    held = Small4ForCausalLM.from_pretrained(run / "folders" / "nvfp4 all", dtype=torch.float32)
    folder = run / "alone" / "nvfp4 all"
    settings = stored_lora(LoraConfig.from_pretrained(str(folder)), held)
    expected = PeftModel.from_pretrained(held, folder, config=settings)
    ids = rows()[0]["input_ids"][None]
    with torch.no_grad():
        theirs = expected.eval()(ids).logits
        assert (found(ids).logits - theirs).abs().max() < 1e-4 * theirs.abs().max()


# -- what is refused, and what several processes change
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_folder.write(tmp_path_factory.mktemp("fp8"), "fp8", vision=False).stored


class Zero3:
    """In place of `HfDeepSpeedConfig`, which needs deepspeed."""

    def is_zero3(self) -> bool:
        return True


@pytest.fixture
def zero3() -> Iterator[None]:
    """What transformers knows of DeepSpeed once a configuration is read."""
    settings = Zero3()  # kept here: transformers has a weak reference
    deepspeed.set_hf_deepspeed_config(settings)
    yield
    deepspeed.unset_hf_deepspeed_config()


def config(model: Any) -> LoraConfig:
    return LoraConfig(r=2, **lora_targets("all+experts", model=model))


@pytest.mark.usefixtures("zero3")
def test_zero3_is_refused_before_anything_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small4ForCausalLM, "__init__", None)
    with pytest.raises(ValueError, match=r"^DeepSpeed ZeRO-3 cannot cut .* Train with FSDP2 .* or expand"):
        Small4ForCausalLM.from_pretrained(folder)


def test_zero3_is_refused_where_the_model_was_loaded_before(folder: Path, request: pytest.FixtureRequest) -> None:
    model = Small4ForCausalLM.from_pretrained(folder)
    request.getfixturevalue("zero3")
    with pytest.raises(ValueError, match="DeepSpeed ZeRO-3 cannot cut"):
        stored_lora(config(model), model)


def test_fsdp1_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small4ForCausalLM.from_pretrained(folder)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match=r"FSDP1 cannot cut .*fsdp_version: 2"):
        stored_lora(config(model), model)
    monkeypatch.setenv("FSDP_VERSION", "2")
    stored_lora(config(model), model)


@pytest.mark.parametrize("name", ["tp_size", "pp_size"])
def test_layers_that_are_cut_are_refused(folder: Path, name: str) -> None:
    model = Small4ForCausalLM.from_pretrained(folder)
    model.config.distributed_config = SimpleNamespace(**{name: 2})
    with pytest.raises(ValueError, match=f"loaded with {name}=2, .* load it with fsdp_size, and ep_size"):
        stored_lora(config(model), model)


@pytest.mark.parametrize("form", stored_folder.FORMS)
def test_bytes_are_the_same_weights(form: str, tmp_path: Path) -> None:
    """Outputs, what is saved, and what is expanded by merging."""
    folders = stored_folder.write(tmp_path, form, vision=False)
    plain = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32).eval()
    model = Small4ForCausalLM.from_pretrained(folders.stored, dtype=torch.float32).eval()
    held = [module for module in model.modules() if isinstance(module, StoredModule)]
    for module in held:
        module.hold_bytes()
        module.hold_bytes()
    stored = [p for module in held for name, p in module.named_parameters()]
    assert {p.dtype for p in stored} == {torch.uint8}
    assert min(p.ndim for p in stored) >= 1
    ids = rows()[0]["input_ids"][None]
    with torch.no_grad():
        assert torch.equal(model.to(torch.float32)(ids).logits, plain(ids).logits)
    model.save_pretrained(tmp_path / "saved")
    assert not any(module.holds_bytes for module in held)
    first, second = (load_file(path / "model.safetensors") for path in (folders.stored, tmp_path / "saved"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert second[name].shape == tensor.shape, name
        if not tensor.is_floating_point() or name.endswith(("_proj", "scale_inv", "_scale")):
            assert second[name].dtype == tensor.dtype, name
            assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (tensor, second[name]))), name


def test_several_processes_hold_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known from the launcher, before the processes are connected; merging and saving undo it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    tuned = adapted(folder)
    held = [module for module in tuned.modules() if isinstance(module, StoredModule)]
    assert all(module.holds_bytes for module in held)
    with torch.no_grad():
        expected = tuned.eval()(rows()[0]["input_ids"][None]).logits
        merged = tuned.merge_and_unload()
        assert (merged(rows()[0]["input_ids"][None]).logits - expected).abs().max() < 1e-4 * expected.abs().max()
    monkeypatch.delenv("WORLD_SIZE")
    assert not any(module.holds_bytes for module in adapted(folder).modules() if isinstance(module, StoredModule))


def test_base_logits_see_no_adapter(folder: Path) -> None:
    tuned = adapted(folder).eval()
    with torch.no_grad():
        assert not torch.equal(base_logits(tuned), tuned(rows()[0]["input_ids"][None]).logits)
