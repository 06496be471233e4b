"""TRL's trainers on a tiny checkpoint, as their users call them: text and images, folders and the command line.

What they feed the model is compared with our own collator on the same rows.
"""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from small4_conversion.convert import Options, convert
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from modeling_small4 import Small4DataCollator, Small4ForCausalLM, Small4Processor, demo_checkpoint

trl = pytest.importorskip("trl")
torch.set_num_threads(1)
TYPED = "[INST] </s> [IMG] [\\INST]"


@pytest.fixture
def processor(folder: Path) -> Small4Processor:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture
def model(folder: Path) -> Small4ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder)


def image(rng: random.Random) -> Image.Image:
    return Image.new("RGB", (rng.randint(20, 90), rng.randint(20, 90)), tuple(rng.randint(0, 255) for _ in range(3)))


def settings(kind: Any, out: Path, **options: Any) -> Any:
    common = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "use_cpu": True, "bf16": False}
    return kind(str(out), report_to=[], logging_steps=1, save_strategy="no", **common | options)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def typed_parts(count: int) -> dict[str, Any]:
    parts = [{"type": "image"} for _ in range(count)] + [{"type": "text", "text": "Compare " + TYPED}]
    return {"role": "user", "content": parts}


def rows(form: str) -> list[dict[str, Any]]:
    rng = random.Random(form)
    counts = {"mixed": [1, 0, 2, 0], "typed parts": [2, 2, 2, 2], "no images": [0] * 4}.get(form, [1, 1, 1, 1])
    out = []
    for number, count in enumerate(counts):
        question = typed_parts(count) if form == "typed parts" else user(f"What is {number}? {TYPED}")
        images = [image(rng) for _ in range(count)]
        answer = [assistant(f"It is {number}. {TYPED}")]
        if form == "typed parts":  # a column holds either strings or lists
            answer[0]["content"] = [{"type": "text", "text": answer[0]["content"]}]
        if form == "prompt/completion":
            out.append({"prompt": [question], "completion": answer, "images": images})
        else:
            out.append({"messages": [question, *answer], "images": images})
    return out


def own_rows(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows for our collator: images in their places, in front of the first user's text where there is none."""
    out = []
    for row in given:
        messages = row.get("messages") or [*row["prompt"], *row["completion"]]
        if isinstance(messages[0]["content"], str) and row["images"]:
            parts = [{"type": "image"}] * len(row["images"]) + [{"type": "text", "text": messages[0]["content"]}]
            messages = [{**messages[0], "content": parts}, *messages[1:]]
        out.append({"messages": messages, "images": row["images"]})
    return out


def seen_by(trainer: Any) -> list[dict[str, Any]]:
    """Trains, and returns the batches as the collator made them."""
    seen, collate = [], trainer.data_collator

    def noting(examples: list[dict[str, Any]]) -> Any:
        batch = collate(examples)
        seen.append({key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)})
        return batch

    trainer.data_collator = noting
    trainer.train()
    return seen


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("form", ["messages", "prompt/completion", "typed parts", "mixed"])
def test_sft_with_images(model: Small4ForCausalLM, processor: Small4Processor, tmp_path: Path, form: str) -> None:
    given = rows(form)
    options = {} if form == "prompt/completion" else {"assistant_only_loss": True}
    arguments = settings(trl.SFTConfig, tmp_path, max_length=None, shuffle_dataset=False, **options)
    arguments.train_sampling_strategy = "sequential"
    trainer = trl.SFTTrainer(model, arguments, train_dataset=Dataset.from_list(given), processing_class=processor)
    seen = seen_by(trainer)
    collator = Small4DataCollator(processor)
    for begin, batch in zip((0, 2), seen, strict=False):
        expected = collator(own_rows(given)[begin : begin + 2])
        for key in ("input_ids", "labels", "attention_mask"):
            assert batch[key].tolist() == expected[key].tolist(), key
        for key in ("pixel_values", "image_sizes"):
            assert (key in batch) == (key in expected)
            assert key not in expected or torch.equal(batch[key], expected[key])
    first = Small4ForCausalLM.from_pretrained(model.config._name_or_path)(**collator(own_rows(given)[:2])).loss
    assert losses(trainer)[0] == pytest.approx(first.item(), rel=1e-3)


@pytest.mark.parametrize("form", ["messages", "prompt/completion", "text", "prompt string"])
@pytest.mark.parametrize("which", ["processor", "tokenizer", "none"])
def test_sft_on_text(folder: Path, model: Small4ForCausalLM, tmp_path: Path, form: str, which: str) -> None:
    given = [{key: value for key, value in row.items() if key != "images"} for row in rows("no images")]
    own, options = [row["messages"] for row in given], {"assistant_only_loss": True}
    processor = AutoProcessor.from_pretrained(folder)
    if form == "prompt/completion":
        given, options = [{"prompt": chat[:1], "completion": chat[1:]} for chat in own], {}
    elif form == "text":
        given, options = [{"text": processor.apply_chat_template(chat)} for chat in own], {}
    elif form == "prompt string":
        shown = [(processor.apply_chat_template(chat[:1]), processor.apply_chat_template(chat)) for chat in own]
        given, options = [{"prompt": str(a), "completion": b[len(a) :]} for a, b in shown], {}
    classes = {"processor": processor, "tokenizer": AutoTokenizer.from_pretrained(folder), "none": None}
    arguments = settings(trl.SFTConfig, tmp_path, shuffle_dataset=False, **options)
    arguments.train_sampling_strategy = "sequential"
    trainer = trl.SFTTrainer(model, arguments, train_dataset=Dataset.from_list(given), processing_class=classes[which])
    seen = seen_by(trainer)
    expected = Small4DataCollator(processor)([{"messages": chat} for chat in own[:2]])
    assert seen[0]["input_ids"].tolist() == expected["input_ids"].tolist()
    labels = (
        expected["input_ids"].masked_fill(expected["attention_mask"] == 0, -100)
        if form == "text"
        else expected["labels"]
    )
    assert seen[0]["labels"].tolist() == labels.tolist()


def test_sft_from_a_folder_keeps_the_processor(folder: Path, tmp_path: Path) -> None:
    arguments = settings(trl.SFTConfig, tmp_path / "run", max_length=None)
    trainer = trl.SFTTrainer(str(folder), arguments, train_dataset=Dataset.from_list(rows("messages")))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert processor.image_processor.max_image_size == 56
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")) is Small4ForCausalLM


# -- preferences and rewards
# -----------------------------------------------------------------------------------------------


def preferences(with_images: bool) -> list[dict[str, Any]]:
    rng = random.Random(7)
    out = []
    for number in range(4):
        row: dict[str, Any] = {"prompt": [user(f"What is {number}? {TYPED}")]}
        row |= {"chosen": [assistant(f"It is {number}. {TYPED}")], "rejected": [assistant("No.")]}
        out.append(row | {"images": [image(rng)] * (1 + number % 2)} if with_images else row)
    return out


def chats(row: dict[str, Any], side: str) -> dict[str, Any]:
    return own_rows([{"prompt": row["prompt"], "completion": row[side], "images": row.get("images", [])}])[0]


@pytest.mark.parametrize("with_images", [True, False])
def test_dpo(model: Small4ForCausalLM, processor: Small4Processor, tmp_path: Path, with_images: bool) -> None:
    given = preferences(with_images)
    arguments = settings(trl.DPOConfig, tmp_path, max_length=None)
    arguments.train_sampling_strategy = "sequential"
    trainer = trl.DPOTrainer(model, args=arguments, train_dataset=Dataset.from_list(given), processing_class=processor)
    seen = seen_by(trainer)
    expected = Small4DataCollator(processor)([chats(row, side) for side in ("chosen", "rejected") for row in given[:2]])
    for found, kept, whole in zip(
        seen[0]["input_ids"].tolist(), seen[0]["attention_mask"].tolist(), expected["input_ids"].tolist(), strict=True
    ):
        ids = [token for token, keep in zip(found, kept, strict=True) if keep]
        assert ids == [token for token in whole if token != processor.tokenizer.pad_token_id]
    if with_images:
        assert torch.equal(seen[0]["pixel_values"], expected["pixel_values"])
        assert torch.equal(seen[0]["image_sizes"], expected["image_sizes"])
    assert all(0 < loss < 5 for loss in losses(trainer))


@pytest.mark.parametrize("with_images", [True, False])
def test_grpo(model: Small4ForCausalLM, processor: Small4Processor, tmp_path: Path, with_images: bool) -> None:
    given = [{key: row[key] for key in ("prompt", "images") if key in row} for row in preferences(with_images)]
    asked, generate = [], Small4ForCausalLM.generate

    def noting(*args: Any, **inputs: Any) -> torch.Tensor:
        asked.append(inputs)
        return generate(model, **inputs)

    model.generate = noting  # type: ignore[method-assign]
    arguments = settings(
        trl.GRPOConfig, tmp_path, num_generations=2, max_completion_length=6, beta=0.1, shuffle_dataset=False
    )
    heard: list[Any] = []

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        heard.extend(completions)
        return [float(len(str(completion))) for completion in completions]

    trainer = trl.GRPOTrainer(
        model, reward_funcs=reward, args=arguments, train_dataset=Dataset.from_list(given), processing_class=processor
    )
    trainer.train()
    assert all(torch.isfinite(torch.tensor(losses(trainer))))
    ids, mask = asked[0]["input_ids"].tolist(), asked[0]["attention_mask"].tolist()
    prompt = own_rows([{"prompt": given[0]["prompt"], "completion": [], "images": given[0].get("images", [])}])[0]
    expected = Small4DataCollator(processor).prompts([{**prompt, "reasoning_mode": "none"}])
    assert [token for token, keep in zip(ids[0], mask[0], strict=True) if keep] == expected["input_ids"][0].tolist()
    assert ("pixel_values" in asked[0]) == with_images
    assert all("</s>" not in str(completion) for completion in heard)


def test_grpo_with_tools(tmp_path: Path) -> None:
    """Calls of the demo checkpoint are made; TRL writes their results without ids."""

    def add(a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: One.
            b: The other.
        """
        return str(a + b)

    heard: list[Any] = []

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        heard.extend(completions)
        return [float(len(str(completion))) for completion in completions]

    folder = demo_checkpoint()
    arguments = settings(trl.GRPOConfig, tmp_path, num_generations=2, max_completion_length=60, max_steps=1)
    trainer = trl.GRPOTrainer(
        Small4ForCausalLM.from_pretrained(folder, dtype="float32"),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "What is 2 + 3?"}]}] * 2),
        processing_class=Small4Processor.from_pretrained(folder),
        tools=[add],
    )
    trainer.train()
    assert all(torch.isfinite(torch.tensor(losses(trainer))))
    roles = [message["role"] for completion in heard for message in completion]
    assert "tool" in roles
    assert "tool_call_id" not in str(heard)


def sft_words(folder: Path, work: Path) -> list[str]:
    (work / "data").mkdir()
    chat = [{"messages": row["messages"]} for row in rows("no images")]
    Dataset.from_list(chat).to_json(str(work / "data" / "train.jsonl"))
    named = {"model_name_or_path": folder, "dataset_name": work / "data", "output_dir": work / "out", "max_steps": 1}
    named |= {"use_cpu": "true", "bf16": "false", "report_to": "none", "assistant_only_loss": "true"}
    return [word for name, value in named.items() for word in (f"--{name}", str(value))]


def test_the_script_of_trl_sft(folder: Path, tmp_path: Path) -> None:
    """`trl sft` in a process where the package is imported."""
    from trl.scripts import sft

    words = sft_words(folder, tmp_path)
    sft.main(*sft.make_parser().parse_args_and_config(words, fail_with_unknown_args=False))
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_processor is not None
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) is Small4ForCausalLM


@pytest.mark.slow
def test_the_command_trl_sft(folder: Path, tmp_path: Path) -> None:
    """The command itself imports no outside package, so the folder carries the code."""
    convert(folder, tmp_path / "code", Options(with_code=True))
    words = ["sft", *sft_words(tmp_path / "code", tmp_path), "--trust_remote_code"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "from trl.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True).image_processor is not None
