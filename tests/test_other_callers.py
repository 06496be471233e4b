"""How evaluation harnesses, notebooks and other trainers call the processor, each against the ids of one step."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from modeling_small4 import Small4Processor
from tests.chat_options import ENCODED
from tests.tiny_checkpoint import write_tiny_checkpoint

RED, BLUE, GREEN = (
    Image.new("RGB", size, color) for size, color in (((60, 30), "red"), ((40, 80), "blue"), ((20, 20), "green"))
)
QUESTION = {"type": "text", "text": "这是什么 </s>? Was ist das [IMG]? ما هذا؟"}


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Small4Processor:
    return AutoProcessor.from_pretrained(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def asked(*images: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*({"type": "image", "image": image} for image in images), QUESTION]}]


def test_as_lm_eval_does_with_images(processor: Small4Processor) -> None:
    hollow = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, QUESTION]}]
    text = processor.apply_chat_template(hollow, add_generation_prompt=True)
    assert processor.tokenizer.encode(text, add_special_tokens=False) == processor.tokenizer.encode(str(text))
    got = processor(
        images=[[RED, BLUE], [GREEN, RED]], text=[text, str(text)], truncation=False, padding="longest",
            return_tensors="pt",
        add_special_tokens=False,
    )  # fmt: skip
    expected = processor.apply_chat_template([asked(RED, BLUE), asked(GREEN, RED)], **ENCODED)
    for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes"):
        assert torch.equal(got[name], expected[name])


def test_images_expanded_by_hand_as_for_pixtral(processor: Small4Processor) -> None:
    """LLaMA-Factory's way: the text of an image from the processor's attributes, ids from the tokenizer, pixels
    apart.
    """
    pixels = processor.image_processor([RED, BLUE], return_tensors="pt")
    unit = processor.patch_size * processor.spatial_merge_size
    text = str(processor.apply_chat_template(asked(RED, BLUE)))
    for height, width in pixels["image_sizes"].tolist():
        row = [processor.image_token] * (width // unit) + [processor.image_break_token]
        tokens = row * (height // unit)
        tokens[-1] = processor.image_end_token
        text = text.replace(processor.image_token, "\0" * 3 + "".join(tokens).replace("[IMG]", "\1"), 1)
    text = text.replace("\0" * 3, "").replace("\1", "[IMG]")
    expected = processor.apply_chat_template(asked(RED, BLUE), **ENCODED)
    assert processor.tokenizer(text, add_special_tokens=False)["input_ids"] == expected["input_ids"][0].tolist()
    assert torch.equal(pixels["pixel_values"], expected["pixel_values"])


def test_axolotl_with_images(processor: Small4Processor) -> None:
    """All texts as parts, the tokenizer's own template given, padding among the processor's arguments."""
    rows = [
        [*asked(RED, BLUE), {"role": "assistant", "content": [{"type": "text", "text": "two </s>"}]}],
        [{"role": "user", "content": [QUESTION]}, {"role": "assistant", "content": [{"type": "text", "text": "none"}]}],
    ]
    got = processor.apply_chat_template(
        rows,
        add_generation_prompt=False,
        tokenize=True,
        return_tensors="pt",
        return_dict=True,
        chat_template=processor.tokenizer.chat_template,
        processor_kwargs={"padding": True},
    )
    for row, shown, messages in zip(got["input_ids"], got["attention_mask"], rows, strict=True):
        alone = processor.apply_chat_template(messages, **ENCODED)
        assert row[shown == 1].tolist() == alone["input_ids"][0].tolist()
    assert got["pixel_values"].shape[0] == 2


@pytest.mark.parametrize("answer", ["two </s>", "", "[[dummy", "é [/INST]", "a\n\nb"])
def test_axolotl_finds_a_turn_by_what_another_text_in_its_place_changes(
    processor: Small4Processor, answer: str
) -> None:
    """Offsets of tokens in the rendered text, which are read back to the ids."""
    tokenizer = processor.tokenizer
    turns = [
        {"role": "system", "content": "[INST] brief"},
        {"role": "user", "content": QUESTION["text"]},
        {"role": "assistant", "content": answer or "x"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "done"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, chat_template=tokenizer.chat_template)
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == ids
    other = tokenizer.apply_chat_template([*turns[:2], turns[2] | {"content": "@@"}, *turns[3:]], tokenize=False)
    assert isinstance(text, str)
    start = next(index for index, (one, two) in enumerate(zip(text, other, strict=False)) if one != two)
    end = len(text) - next(n for n, (one, two) in enumerate(zip(text[::-1], other[::-1], strict=False)) if one != two)
    held = [ids[n] for n, (first, last) in enumerate(encoded["offset_mapping"]) if first < end and last > start]
    assert tokenizer.decode(held) == (answer or "x")


def calls_and_results(count: int, name: str | None) -> list[dict[str, Any]]:
    """A turn with tools; ids under `name` and a number, or none."""
    calls = [
        {"type": "function", "function": {"name": f"f{n}", "arguments": {"x": n}}}
        | ({"id": f"{name}{n}"} if name else {})
        for n in range(count)
    ]
    results = [
        {"role": "tool", "name": f"f{n}", "content": str(n)} | ({"tool_call_id": f"{name}{n}"} if name else {})
        for n in range(count)
    ]
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("absent", [False, True])
def test_tool_calls_without_ids_as_trl_and_transformers_write_them(
    processor: Small4Processor, count: int, absent: bool
) -> None:
    """The ids of tokens are those of a conversation with ids, which are not part of a prompt. A column of a data set
    has None where a key is missing."""
    asked_, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "done"}
    unnamed, named = calls_and_results(count, None), calls_and_results(count, "call")
    if absent:
        unnamed[0]["tool_calls"] = [call | {"id": None} for call in unnamed[0]["tool_calls"]]
        unnamed[1:] = [result | {"tool_call_id": None} for result in unnamed[1:]]
    for behind in ([], [answer], [answer, asked_, *unnamed], [answer, asked_, *named, answer]):
        got = processor.apply_chat_template([asked_, *unnamed, *behind], tokenize=True)
        assert got == processor.apply_chat_template(
            [
                asked_,
                *named,
                *([answer, asked_, *named] if len(behind) > 2 + count and behind[2:] == unnamed else behind),
            ],
            tokenize=True,
        )
    assert processor.apply_chat_template([asked_, unnamed[0]]) == processor.apply_chat_template([asked_, named[0]])


def test_ids_of_tool_calls_that_only_some_have_are_refused(processor: Small4Processor) -> None:
    asked_, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "done"}
    unnamed, named = calls_and_results(2, None), calls_and_results(2, "call")
    half = named[0] | {"tool_calls": [named[0]["tool_calls"][0], unnamed[0]["tool_calls"][1]]}
    for turn, message in (
        ([named[0], *unnamed[1:]], "answers no call"),
        ([unnamed[0], *named[1:]], "answers no call"),
        ([named[0], named[1], unnamed[2]], "answers no call"),
        ([half, *named[1:]], "answers no call|needs an"),
        ([half], "needs an"),
        ([unnamed[0], unnamed[1], answer], "Results are missing"),
        ([unnamed[0], answer], "Results are missing"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.apply_chat_template([asked_, *turn])
    with pytest.raises(ValueError, match="tool_call_id"):
        processor.apply_chat_template([unnamed[1], answer])


def test_images_of_a_data_set_that_are_not_decoded(processor: Small4Processor, tmp_path: Path) -> None:
    out = io.BytesIO()
    RED.save(out, "PNG")
    expected = processor(images=RED)["pixel_values"]
    assert torch.equal(processor(images={"bytes": out.getvalue(), "path": None})["pixel_values"], expected)
    RED.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="not allowed"):
        processor(images={"bytes": None, "path": str(tmp_path / "a.png")})


def test_one_image_and_one_text_in_the_order_of_transformers(processor: Small4Processor) -> None:
    got = processor(RED, "<s>[INST][IMG]What?[/INST]", return_tensors="pt")
    assert got["input_ids"].tolist()[0].count(13) == 1
    mixed = processor(text=["[INST][IMG]a[/INST]", "[INST]b[/INST]"], images=[RED], padding=True, return_tensors="pt")
    assert [row.count(13) for row in mixed["input_ids"].tolist()] == [1, 0]
