"""Models whose experts are read from disk: what is refused, and files and disks that fail under a running model."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from forked import python
from offloaded_models import GREEDY, offloaded, padded, slots
from stored_folder import Folders

from modeling_small4 import Small4ForCausalLM, lora_targets, stored_lora
from modeling_small4.experts_files import LayerFiles, WatchedFile, read_header
from modeling_small4.experts_offloaded import expert_store
from modeling_small4.experts_pool import Pool, Usage


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return stored_folder.write(tmp_path_factory.mktemp("plain"), "fp8")


def test_gradients_and_saving_are_refused(plain: Folders, tmp_path: Path) -> None:
    model = offloaded(plain.stored, "1GB").model
    output = model(**padded(), labels=padded()["input_ids"])
    with pytest.raises(ValueError, match="has no gradients"):
        output.loss.backward()
    with pytest.raises(ValueError, match="copy that folder"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("options", [{"dequantize": True}, {"weight": "missing"}, {"weight": "short"}])
def test_checkpoints_that_cannot_be(plain: Folders, tmp_path: Path, options: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    shutil.copytree(plain.stored, tmp_path / "copy")
    name = "model.language_model.layers.1.mlp.experts.down_proj"
    tensors = dict(plain.tensors)
    if options.pop("weight", None) == "missing":
        del tensors[name], tensors[name + "_scale_inv"]
    elif not options:
        tensors[name] = tensors[name][:3].clone()
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"expanded while loading|down_proj"):
        Small4ForCausalLM.from_pretrained(tmp_path / "copy", expert_memory="1GB", **options)


@pytest.mark.parametrize("accident", ["cut", "replaced", "changed", "deleted"])
def test_files_that_change_under_a_running_model(plain: Folders, tmp_path: Path, accident: str) -> None:
    shutil.copytree(plain.stored, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    model = offloaded(tmp_path / "copy", slots(plain.stored, 2)).model
    model.generate(**padded(), **GREEDY)
    if accident == "cut":
        os.truncate(file, 10_000)
    elif accident == "replaced":
        shutil.copy(file, tmp_path / "other")
        os.replace(tmp_path / "other", file)
    elif accident == "changed":
        with file.open("r+b") as opened:
            opened.seek(-100, os.SEEK_END)
            opened.write(bytes(100))
        os.utime(file)
    else:
        file.unlink()
    for _ in range(2):  # and again: nothing is left half read
        with pytest.raises(OSError, match=r"model\.safetensors") as raised:
            model.generate(**padded(), **GREEDY)
        assert "\n" not in str(raised.value)
    pool = expert_store(model).pool  # type: ignore[union-attr]
    assert not pool._holders.any()


def test_a_disk_that_fails_once(plain: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    made, whole = offloaded(plain.stored, slots(plain.stored, 2)), Small4ForCausalLM.from_pretrained(plain.stored)
    real, calls = LayerFiles.read, [0]

    def read(self: Any, expert: int, slot: torch.Tensor) -> int:
        calls[0] += 1
        if calls[0] == 5:
            raise OSError("Input/output error")
        return real(self, expert, slot)

    monkeypatch.setattr(LayerFiles, "read", read)
    with pytest.raises(OSError, match="Input/output error"):
        made.model.generate(**padded(), **GREEDY)
    assert torch.equal(made.model.generate(**padded(), **GREEDY), whole.generate(**padded(), **GREEDY))


def test_nothing_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that reads ahead has to be told, before the first read; what was read is dropped from its cache."""
    (tmp_path / "x").write_bytes(bytes(100_000))
    said: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *given: said.append(given), raising=False)
    file = WatchedFile(str(tmp_path / "x"))
    assert said == [(0, 0, os.POSIX_FADV_RANDOM)]
    file.read(50_000, memoryview(bytearray(10_000)))
    assert said[1:] == [(50_000, 10_000, os.POSIX_FADV_DONTNEED)]
    monkeypatch.delattr(os, "posix_fadvise")
    WatchedFile(str(tmp_path / "x")).read(0, memoryview(bytearray(10)))


def test_the_working_directory_may_change(plain: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain.stored.parent)
    model = offloaded(Path(plain.stored.name), slots(plain.stored, 2)).model
    expected = model.generate(**padded(), **GREEDY)
    monkeypatch.chdir("/")
    assert torch.equal(model.generate(**padded(), **GREEDY), expected)


def test_memory_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="give less in expert_memory"):
        Pool(2**20, 2**40, None, Usage(1, 4), torch.device("cpu"))  # type: ignore[arg-type]


def test_adapters_of_experts_are_refused(plain: Folders) -> None:
    """PEFT finds no experts, and would leave their part of an adapter out with a warning."""
    from peft import LoraConfig, get_peft_model

    model = offloaded(plain.stored, "1GB").model
    with pytest.raises(ValueError, match="expert_memory=False"):
        stored_lora(LoraConfig(**lora_targets("all+experts")), model)
    tuned = get_peft_model(model, stored_lora(LoraConfig(**lora_targets("attention+shared")), model))
    with torch.no_grad():
        assert torch.isfinite(tuned(**padded()).logits).all()


def test_a_damaged_header(tmp_path: Path) -> None:
    for content in (b"", b"\x05\0\0\0\0\0\0\0[1,2]", b"\xff" * 100):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="not a safetensors file"):
            read_header(str(tmp_path / "x.safetensors"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_reads_experts_too(plain: Folders) -> None:
    """As servers do that load a model and then start their workers."""
    made = offloaded(plain.stored, slots(plain.stored, 2))
    script = f"""
import os, signal, torch
torch.set_num_threads(1)
from modeling_small4 import Small4ForCausalLM, lora_targets, stored_lora
model = Small4ForCausalLM.from_pretrained({str(plain.stored)!r}, expert_memory={made.store.pool.memory.nbytes})
ids = [torch.arange(1000 + n, 1020 + n)[None] for n in (0, 50)]
expected = [model(each).logits for each in ids]
child = os.fork()
if not child:
    signal.alarm(100)
    os._exit(0 if all(torch.equal(model(each).logits, want) for each, want in zip(ids, expected)) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr[-2000:]
