"""Drafts whose settings or headers are damaged in any way: one line that names the folder, or a draft."""

import json
import random
import shutil
from pathlib import Path

import dflash_checkpoint
import pytest
import test_drafts_eagle
import torch

from model_card.evals.fuzz.damage import damaged
from modeling_small4.drafts_reading import draft_bytes, is_draft, read_draft

KINDS = {
    "ours": ("config.json", "model.safetensors"),
    "official": ("params.json",),
    "z-lab": ("config.json",),
    "speculators": ("config.json",),
}


def write(folder: Path, kind: str) -> Path:
    if kind == "ours":
        return shutil.copytree(Path(__file__).parents[1] / "model_card" / "demo_draft", folder)
    if kind == "official":
        return test_drafts_eagle.write(folder, test_drafts_eagle.tensors(6))
    return dflash_checkpoint.write(folder, kind, 16, 50)


@pytest.mark.filterwarnings("ignore:.*did you mean:UserWarning")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_damage_is_told_in_one_line(kind: str, name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "draft", kind)
    sound = (folder / name).read_bytes()
    told = list[str]()
    for seed in range(60):
        change = damaged(name, sound, random.Random(f"{kind} {seed}"))
        (folder / name).write_bytes(sound if change.data is None else change.data)
        is_draft(folder)
        for read in (lambda: read_draft(str(folder), torch.float32), lambda: draft_bytes(str(folder), 100, 1)):
            try:
                read()
            except (ValueError, OSError) as error:
                told.append(str(error))
    assert len(told) > 10
    assert [text for text in told if str(folder) not in text or "\n" in text] == []


@pytest.mark.parametrize("text", ["[" * 5000, "[1]", "\xff", "{"])
def test_what_is_no_object_is_no_draft(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert not is_draft(tmp_path)
    with pytest.raises(ValueError, match=r"config.json: not a valid JSON object"):
        read_draft(str(tmp_path), torch.float32)


@pytest.mark.parametrize("value", [[1], "x", None])
def test_the_file_that_is_wrong_is_named(value: object, tmp_path: Path) -> None:
    folder = write(tmp_path / "draft", "official")
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | {"rope_theta": value}))
    for read in (lambda: read_draft(str(folder), torch.float32), lambda: draft_bytes(str(folder), 100, 1)):
        with pytest.raises(ValueError, match=r"draft/params\.json: "):
            read()
