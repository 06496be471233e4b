"""What is not read is refused by its name with the nearest format that is; what `from_pretrained` cannot open says how
to convert it.
"""

import json
import shutil
from pathlib import Path

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import check_logits
from safetensors.torch import save_file
from small4_conversion.convert import convert
from small4_conversion.formats import table
from transformers import AutoConfig, AutoModelForCausalLM, Mistral3Config

from modeling_small4 import Small4ForCausalLM

GUIDE = Path(__file__).parents[1] / "model_card" / "guides" / "converting.md"


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    p = rc.params()
    return d.write_folder(tmp_path_factory.mktemp("fused") / "hf", p, rc.host_state(p, rc.weights(p)))


def announcing(folder: Path, entry: dict[str, object], to: Path) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"quantization_config": entry}))
    return to


@pytest.mark.parametrize("method", [*table.REFUSED, "next-year"])
def test_other_ways_of_quantizing_are_named(tmp_path: Path, fused: Path, method: str) -> None:
    folder = announcing(fused, {"quant_method": method, "bits": 4}, tmp_path / "hf")
    name = table.REFUSED.get(method, (method, ""))[0]
    with pytest.raises(ValueError, match=rf"config\.json.*{name}.* is not read; (nearest|save|convert)"):
        convert(folder, tmp_path / "out")
    if method == "torchao":  # transformers' own way of loading
        return
    with pytest.raises(ValueError, match="small4 convert"):
        Small4ForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("form", ["marlin-24", "mxfp4-pack-quantized", "sparse-24-bitmask"])
def test_other_formats_of_compressed_tensors_are_named(tmp_path: Path, fused: Path, form: str) -> None:
    folder = announcing(fused, d.compressed_entry(form, num_bits=4, type="int"), tmp_path / "hf")
    with pytest.raises(ValueError, match=f"{form}.*pack-quantized"):
        convert(folder, tmp_path / "out")
    with pytest.raises(ValueError, match=f"{form}.*small4 convert"):
        Small4ForCausalLM.from_pretrained(folder)


def test_the_eagle_draft_is_called_so(tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    folder.mkdir()
    p = rc.params(vision=False)
    del p["moe"]
    (folder / "params.json").write_text(json.dumps(p | {"n_layers": 2}))
    save_file(
        {"eagle_linear.weight": torch.zeros(64, 128), "norm.weight": torch.ones(64)},
        folder / "consolidated.safetensors",
    )
    with pytest.raises(ValueError, match="EAGLE draft"):
        convert(folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"raw release.*small4 convert"):
        Small4ForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("auto", [Small4ForCausalLM, AutoModelForCausalLM])
@pytest.mark.parametrize("vision", [True, False])
def test_folders_in_transformers_layout_open_or_say_how(tmp_path: Path, auto: type, vision: bool) -> None:
    p = rc.params(vision=vision)
    raw = rc.weights(p, seed=3)
    d.write_folder(tmp_path / "fused", p, {k: v for k, v in rc.host_state(p, raw).items()})
    model = auto.from_pretrained(tmp_path / "fused", dtype=torch.float32)
    assert type(model) is Small4ForCausalLM
    check_logits(model, p, raw)
    d.write_folder(tmp_path / "apart", p, d.unfused(p, raw))
    check_logits(auto.from_pretrained(tmp_path / "apart", dtype=torch.float32), p, raw)


def test_raw_and_gguf_folders_say_how(tmp_path: Path) -> None:
    p = rc.params()
    rc.write_raw(tmp_path / "raw", p, rc.weights(p))
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "x.gguf").write_bytes(b"GGUF")
    for folder, what in ((tmp_path / "raw", "raw release"), (tmp_path / "gguf", "GGUF")):
        with pytest.raises(ValueError, match=f"{what}.*small4 convert {folder} DST"):
            Small4ForCausalLM.from_pretrained(folder)


def test_another_mistral3_is_not_taken_for_this_model(tmp_path: Path) -> None:
    config = Mistral3Config(text_config={"model_type": "mistral", "hidden_size": 32, "num_hidden_layers": 1})
    config.save_pretrained(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no Mistral Small 4"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no Mistral Small 4"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))


@pytest.mark.parametrize("row", table.ROWS, ids=lambda row: row.name)
def test_every_row_of_the_table_has_its_test(row: table.Row) -> None:
    file, _, name = row.test.partition("::")
    text = (Path(__file__).parent / file).read_text()
    function, _, case = name.partition("[")
    assert f"def {function}(" in text
    assert f'"{case.rstrip("]")}"' in text or not case
    assert "silently" not in "".join(row)


def test_the_guide_shows_the_table() -> None:
    assert table.markdown() in GUIDE.read_text()
