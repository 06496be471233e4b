"""A folder in transformers' layout, as the release is on the Hub, loaded by our classes without conversion."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small4_conversion.convert import Options, convert

from modeling_small4 import Small4ForCausalLM, Small4ImageProcessor, Small4Processor, demo_checkpoint

OPTIONS = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hosted") / "folder"
    convert(demo_checkpoint(), out, Options(to="transformers"))
    return out


def inputs(processor: Small4Processor) -> Any:
    image = Image.linear_gradient("L").convert("RGB").resize((150, 90))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is [INST] in the picture?"}]
    return processor.apply_chat_template([{"role": "user", "content": content}], **OPTIONS)


def test_model_and_processor_are_those_of_our_layout(folder: Path) -> None:
    found = inputs(Small4Processor.from_pretrained(folder))
    wanted = inputs(Small4Processor.from_pretrained(demo_checkpoint()))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    models = (Small4ForCausalLM.from_pretrained(place, dtype="float32") for place in (folder, demo_checkpoint()))
    with torch.inference_mode():
        logits = [model(**wanted).logits for model in models]
    assert torch.equal(*logits)


@pytest.mark.parametrize("patch", [14, {"height": 14, "width": 14}])
def test_settings_of_pixtrals_image_processor(folder: Path, patch: Any) -> None:
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"] | {"patch_size": patch}
    settings |= {"do_resize": True, "resample": 3, "size": {"longest_edge": 308}}
    made = Small4ImageProcessor.from_dict(settings)
    assert (made.patch_size, made.max_image_size) == (14, 308)
    assert set(made.to_dict()) == set(Small4ImageProcessor().to_dict())


def test_patches_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_size"):
        Small4ImageProcessor.from_dict({"patch_size": {"height": 14, "width": 16}})
