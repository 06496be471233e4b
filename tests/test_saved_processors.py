"""Folders that trainers leave behind: their processor can be loaded, images included, or the error says what is
missing.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, Trainer, TrainingArguments

from modeling_small4 import Small4DataCollator, Small4Processor
from tests.tiny_checkpoint import write_tiny_checkpoint

IMAGE = Image.new("RGB", (90, 40), "green")
CHAT = [{"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "What?"}]}]
ROW = {"messages": [*CHAT, {"role": "assistant", "content": "green"}]}


def trained(folder: Path, out: Path, collator: Any, **options: Any) -> Trainer:
    usual = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": [],
        "remove_unused_columns": False,
    }
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = Trainer(model, TrainingArguments(str(out), **usual), collator, train_dataset=[ROW] * 2, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("given", ["collator alone", "tokenizer", "processor"])
def test_trainer_with_images(folder: Path, tmp_path: Path, given: str) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    options = {"tokenizer": {"processing_class": processor.tokenizer}, "processor": {"processing_class": processor}}
    trainer = trained(folder, tmp_path / "run", Small4DataCollator(processor), **options.get(given, {}))
    trainer.save_model(str(tmp_path / "saved"))
    expected = processor.apply_chat_template(CHAT, tokenize=True)
    for saved in (tmp_path / "saved", tmp_path / "run" / "checkpoint-1"):
        again = AutoProcessor.from_pretrained(saved)
        assert type(again) is Small4Processor
        assert again.apply_chat_template(CHAT, tokenize=True) == expected
        assert again.image_processor.to_dict() == processor.image_processor.to_dict()


def test_a_model_saved_alone(folder: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    trainer = trained(folder, tmp_path / "run", lambda rows: Small4DataCollator(processor)(rows))
    trainer.save_model(str(tmp_path / "saved"))
    with pytest.raises(OSError, match=r"no tokenizer\.json.*processor\.save_pretrained"):
        AutoProcessor.from_pretrained(tmp_path / "saved")


def test_a_lost_processor_configuration(folder: Path, tmp_path: Path) -> None:
    expected = AutoProcessor.from_pretrained(folder)
    shutil.copytree(folder, tmp_path / "lost")
    (tmp_path / "lost" / "processor_config.json").unlink()
    again = AutoProcessor.from_pretrained(tmp_path / "lost")
    assert again.image_processor.to_dict() == expected.image_processor.to_dict()
    (tmp_path / "lost" / "preprocessor_config.json").write_text(json.dumps({"max_image_size": 84, "patch_size": 14}))
    assert AutoProcessor.from_pretrained(tmp_path / "lost").image_processor.max_image_size == 84
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "lost" / name).unlink()
    bare = AutoProcessor.from_pretrained(tmp_path / "lost")
    with pytest.raises(ValueError, match=r"processor_config\.json\s+and config\.json are missing"):
        bare.apply_chat_template(CHAT, tokenize=True)


def test_a_text_model_takes_no_images(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, vision=False)
    for processor in (
        AutoProcessor.from_pretrained(folder),
        Small4Processor(None, AutoTokenizer.from_pretrained(folder)),
    ):
        with pytest.raises(ValueError, match="no vision"):
            processor.apply_chat_template(CHAT, tokenize=True)
        processor.save_pretrained(folder)
        (folder / "processor_config.json").unlink()
        assert AutoProcessor.from_pretrained(folder).image_processor is None


def test_arguments_of_from_pretrained_reach_both_parts(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder, padding_side="right", max_image_size=28, do_normalize=False)
    assert processor.tokenizer.padding_side == "right"
    assert processor.image_processor.max_image_size == 28
    assert processor(images=IMAGE)["pixel_values"].min() >= 0
    other = AutoProcessor.from_pretrained(folder, image_processor=processor.image_processor)
    assert other.image_processor is processor.image_processor
