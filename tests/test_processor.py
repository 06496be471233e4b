"""The processor as users call it: batches, raw text, continued messages, masks, tools, saving, and injections."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small4_conversion.tokenizer import read_tokenizer, reasoning_token_ids, write_processor
from transformers import AutoTokenizer, TokenizersBackend

from modeling_small4.chat_images import fill
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.reasoning import settings_text
from modeling_small4.tokenization_small4 import Small4Tokenizer
from tests.chat_options import ENCODED
from tests.tekken_files import CONTROL, tekken, write_tekken

VISION = {"patch_size": 14, "max_image_size": 112, "spatial_merge_size": 2}
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
IMG = CONTROL["[IMG]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint")
    write_processor(write_tekken(out / "source", 5_000), out, VISION)
    return out


def picture(width: int = 60, height: int = 30) -> Image.Image:
    return Image.new("RGB", (width, height), "green")


def row(processor: Small4Processor, messages: Any, **options: Any) -> list[int]:
    return processor.apply_chat_template(messages, tokenize=True, **options)[0]


def text_of(processor: Small4Processor, *parts: str) -> list[int]:
    out: list[int] = []
    for part in parts:
        out += [CONTROL[part]] if part in CONTROL else processor.tokenizer.encode_texts([part])[0]
    return out


def test_modes(processor: Small4Processor) -> None:
    none, high = row(processor, [USER], reasoning_mode="none"), row(processor, [USER], reasoning_mode="high")
    expected = text_of(processor, "<s>", "[MODEL_SETTINGS]", settings_text("high"), "[/MODEL_SETTINGS]")
    assert high == expected + text_of(processor, "[INST]", "hi", "[/INST]")
    assert none != high
    assert row(processor, [USER]) == none
    for options in (
        {"reasoning_effort": "high"},
        {"reasoning_mode": "high", "reasoning_effort": "high"},
        {"enable_thinking": True},
    ):
        assert row(processor, [USER], **options) == high
    assert row(processor, [USER], enable_thinking=False) == none
    for bad in ("medium", "", True, 1):
        with pytest.raises(ValueError, match="'none' or 'high'"):
            row(processor, [USER], reasoning_mode=bad)
    with pytest.raises(ValueError, match="contradict"):
        row(processor, [USER], reasoning_mode="high", reasoning_effort="none")


def test_a_batch_is_padded_on_the_left(processor: Small4Processor) -> None:
    chats = [
        [USER],
        [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "long " * 9}]}],
    ]
    batch = processor.apply_chat_template(chats, **ENCODED)
    alone = [row(processor, chat) for chat in chats]
    for ids, mask, expected in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), alone, strict=True):
        assert ids[len(ids) - len(expected) :] == expected
        assert set(ids[: len(ids) - len(expected)]) <= {CONTROL["<pad>"]}
        assert mask == [0] * (len(ids) - len(expected)) + [1] * len(expected)
    assert batch["image_sizes"].tolist() == [[56, 84]]
    ragged = processor.apply_chat_template(chats, tokenize=True, return_dict=True)
    assert ragged["input_ids"] == alone
    assert processor.apply_chat_template([USER], tokenize=True) == [alone[0]]
    assert processor.apply_chat_template([USER], tokenize=True, return_tensors="pt").tolist() == [alone[0]]
    assert processor.apply_chat_template([USER], **ENCODED | {"return_tensors": "np"})["input_ids"].tolist() == [
        alone[0]
    ]


def test_continued_and_finished_conversations(processor: Small4Processor) -> None:
    start = row(processor, [USER])
    said = text_of(processor, "hello")
    assert row(processor, [USER, ANSWER], continue_final_message=True) == start + said
    assert row(processor, [USER, {**ANSWER, "prefix": True}]) == start + said
    assert row(processor, [USER, ANSWER]) == [*start, *said, CONTROL["</s>"]]
    thought = {"role": "assistant", "reasoning_content": "hello", "content": ""}
    assert row(processor, [USER, thought], continue_final_message="reasoning_content") == [
        *start,
        CONTROL["[THINK]"],
        *said,
    ]
    with pytest.raises(ValueError, match="continue_final_message=True"):
        row(processor, [USER, ANSWER], add_generation_prompt=True)
    with pytest.raises(ValueError, match="contradict"):
        row(processor, [USER, ANSWER], add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(ValueError, match="last message of the assistant"):
        row(processor, [USER], continue_final_message=True)


def test_assistant_masks(processor: Small4Processor) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture()}]},
        {"role": "assistant", "reasoning_content": "hm", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "out"},
        ANSWER,
    ]
    out = processor.apply_chat_template(messages, return_assistant_tokens_mask=True, **ENCODED)
    ids, mask = out["input_ids"][0], out["assistant_masks"][0]
    first = text_of(processor, "[THINK]", "hm", "[/THINK]", "[TOOL_CALLS]", "f", "[ARGS]", "{}", "</s>")
    assert ids[mask.bool()].tolist() == first + text_of(processor, "hello", "</s>")
    batch = processor.apply_chat_template([messages, [USER, ANSWER]], return_assistant_tokens_mask=True, **ENCODED)
    assert batch["assistant_masks"].shape == batch["input_ids"].shape
    assert batch["input_ids"][1][batch["assistant_masks"][1].bool()].tolist() == text_of(processor, "hello", "</s>")


def test_text_without_special_tokens_on_request(processor: Small4Processor) -> None:
    text = r"[INST] <s>[IMG] hi [/INST]</s> [\INST]"
    out = processor(text=text, images=picture(), split_special_tokens=True, return_tensors="pt")
    ids = out["input_ids"][0].tolist()
    assert ids[0] == CONTROL["<s>"]
    units = (out["image_sizes"][0] // 28).prod().item()
    assert ids.count(IMG) == units
    control = [index for index in ids if index < 1000]
    assert set(control) == {CONTROL[token] for token in ("<s>", "[IMG]", "[IMG_BREAK]", "[IMG_END]")}
    assert processor.tokenizer.decode(ids).endswith(text)
    assert processor.tokenizer(text, split_special_tokens=True)["input_ids"] == text_of(processor, "<s>", text)


def test_a_prompt_string_begins_with_one_bos(processor: Small4Processor) -> None:
    for text, options, expected in (
        ("a", {}, ["<s>", "a"]),
        ("a", {"add_special_tokens": False}, ["a"]),
        ("[INST]", {}, ["<s>", "[INST]"]),
        ("[INST]", {"add_special_tokens": False}, ["[INST]"]),
        ("<s>[INST]", {}, ["<s>", "[INST]"]),
        ("<s>[INST]", {"add_special_tokens": False}, ["<s>", "[INST]"]),
        (r"[\INST]a", {}, ["<s>", "[INST]a"]),
        (r"[\\INST]a[/INST]", {}, ["<s>", r"[\INST]a", "[/INST]"]),
    ):
        assert processor(text=text, **options)["input_ids"][0] == text_of(processor, *expected)
        assert processor.tokenizer(text, **options)["input_ids"] == text_of(processor, *expected)
    both = processor.tokenizer(["<s>a", "a"])["input_ids"]
    assert both[0] == both[1] == text_of(processor, "<s>", "a")


def test_prompts_written_by_hand(processor: Small4Processor) -> None:
    image = picture()
    content = [{"type": "image", "image": image}, {"type": "text", "text": "hi"}]
    expected = processor.apply_chat_template([{"role": "user", "content": content}], **ENCODED)
    raw = f"<s>[MODEL_SETTINGS]{settings_text('none')}[/MODEL_SETTINGS][INST][IMG]hi[/INST]"
    got = processor(text=raw, images=[image], return_tensors="pt")
    assert got["input_ids"].tolist() == expected["input_ids"].tolist()
    assert torch.equal(got["pixel_values"], expected["pixel_values"])
    with pytest.raises(ValueError, match="1 places for images and 0 images"):
        processor(text=raw)
    with pytest.raises(ValueError, match="1 places for images and 2 images"):
        processor(text=raw, images=[image, image])
    with pytest.raises(ValueError, match="1 places for images in prompt 2 and 2 images"):
        processor(text=[raw, raw], images=[[image], [image, image]])
    with pytest.raises(ValueError, match="0 places for images and 1 images"):
        processor(text="<s>[INST]hi[/INST]", images=[image])


def test_several_texts_need_as_many_groups_of_images(processor: Small4Processor) -> None:
    out = processor(text=["a", "b"], images=[[picture()], [picture(), picture(28, 28)]])
    counts = [ids.count(IMG) for ids in out["input_ids"]]
    assert counts == [2 * 3, 2 * 3 + 1]
    with pytest.raises(ValueError, match="list of 2 lists"):
        processor(text=["a", "b"], images=[picture()])
    with pytest.raises(ValueError, match="text, images or both"):
        processor()
    with pytest.raises(ValueError, match="cut through an image"):
        processor(text="a", images=picture(), truncation=True, max_length=4)
    assert len(processor(text="a b c d e", truncation=True, max_length=3)["input_ids"][0]) == 3


@pytest.mark.parametrize("seed", range(20))
def test_each_image_goes_to_its_place(seed: int) -> None:
    """As many images as places, or as places without a name, in lists for each prompt or in one list of all."""
    rng = random.Random(seed)
    names = [[rng.choice([None, f"named {at}"]) for at in range(rng.randint(0, 3))] for _ in range(rng.randint(1, 3))]
    for for_all in (True, False):
        beside, expected = [], []
        for number, named in enumerate(names):
            beside.append([f"{number} {at}" for at, name in enumerate(named) if for_all or name is None])
            expected += [f"{number} {at}" if for_all or name is None else name for at, name in enumerate(named)]
        assert fill(names, beside) == expected
        assert fill(names, [image for group in beside for image in group]) == expected


def test_a_tokenizer_and_the_processor_agree(processor: Small4Processor) -> None:
    def add(a: int, b: int) -> int:
        """Adds.

        Args:
            a: One number.
            b: Another.
        """
        return a + b

    ids = row(processor, [USER], tools=[add], reasoning_mode="high")
    for options in ({"reasoning_mode": "high"}, {"reasoning_effort": "high"}):
        assert processor.tokenizer.apply_chat_template([USER], tools=[add], **options)["input_ids"] == ids
    schema = {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "One number."},
                    "b": {"type": "integer", "description": "Another."},
                },
                "required": ["a", "b"],
            },
        },
    }
    block = text_of(processor, "[AVAILABLE_TOOLS]", json.dumps([schema]), "[/AVAILABLE_TOOLS]")
    assert ids[1 : 1 + len(block)] == block
    assert row(processor, [USER], tools=[schema], reasoning_mode="high") == ids
    for bad in (["add"], "add", [{"name": "add"}], [len], {"type": "function"}):
        with pytest.raises(ValueError, match="tool"):
            row(processor, [USER], tools=bad)


BAD_PARAMETERS = [
    ({"type": "objekt"}, r"schema\.type is wrong: 'objekt'"),
    (
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": "0"}}},
        r"schema\.properties\.a\.minimum is wrong: '0'",
    ),
    ({"type": "object", "required": "a"}, r"schema\.required is wrong: 'a'"),
]


@pytest.mark.parametrize(("parameters", "place"), BAD_PARAMETERS)
def test_parameters_that_are_no_schema_are_refused_by_place(
    processor: Small4Processor, parameters: dict[str, Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    with pytest.raises(ValueError, match=rf"tool 'add' are no JSON schema \(draft 7\): {place}"):
        row(processor, [USER], tools=[tool])
    monkeypatch.setitem(sys.modules, "jsonschema", None)  # as where a checkpoint's own code runs
    assert row(processor, [USER], tools=[tool])


def test_two_rounds_with_a_real_function(processor: Small4Processor) -> None:
    def multiply(a: int, b: int) -> int:
        """Multiplies.

        Args:
            a: One number.
            b: Another.
        """
        return a * b

    messages: list[dict[str, Any]] = [{"role": "user", "content": "12 times 7, then times 2?"}]
    for arguments in ({"a": 12, "b": 7}, {"a": 84, "b": 2}):
        generated = text_of(processor, "[TOOL_CALLS]", "multiply", "[ARGS]", json.dumps(arguments), "</s>")
        before = row(processor, messages, tools=[multiply])
        answer = processor.parse_response(generated)
        call = answer["tool_calls"][0]
        result = multiply(**call["function"]["arguments"])
        messages += [answer, {"role": "tool", "tool_call_id": call["id"], "content": str(result)}]
        after = row(processor, messages, tools=[multiply])
        expected = text_of(processor, "[TOOL_RESULTS]", str(result), "[/TOOL_RESULTS]")
        assert after == before + generated + expected
    assert messages[-1]["content"] == "168"


def test_another_template_is_rendered_by_transformers(processor: Small4Processor) -> None:
    template = "{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}{{ reasoning_mode }}"
    ids = row(processor, [USER], chat_template=template, reasoning_mode="high")
    assert ids == text_of(processor, "<s>", "[INST]", "hi", "[/INST]", "high")


def test_saving_and_loading(processor: Small4Processor, folder: Path, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = Small4Processor.from_pretrained(tmp_path)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    assert row(again, [USER], reasoning_mode="high") == row(processor, [USER], reasoning_mode="high")
    for name in ("tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (folder / name).read_text(), name
    assert isinstance(Small4Tokenizer.from_pretrained(tmp_path), Small4Tokenizer)
    assert processor.image_token_id == IMG
    assert processor.model_input_names == ["pixel_values", "image_sizes", "input_ids", "attention_mask"]


def test_a_checkpoint_without_vision(tmp_path: Path) -> None:
    write_processor(write_tekken(tmp_path / "source", 300), tmp_path, None)
    processor = Small4Processor.from_pretrained(tmp_path)
    assert processor.image_processor is None
    assert row(processor, [USER])
    with pytest.raises(ValueError, match="no vision"):
        row(processor, [{"role": "user", "content": [{"type": "image", "image": picture()}]}])
    processor.save_pretrained(tmp_path / "again")
    assert Small4Processor.from_pretrained(tmp_path / "again").image_processor is None


def test_what_is_written_for_generation(folder: Path, processor: Small4Processor) -> None:
    written = json.loads((folder / "generation_config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == (1, 2, 11)
    assert "_from_model_config" not in written
    ids = written["reasoning_token_ids"]
    assert ids == reasoning_token_ids(processor.tokenizer)
    assert ids["think"] == 34
    assert ids["settings_high"] == text_of(processor, settings_text("high"))
    assert (folder / "tekken.json").read_bytes() == (folder / "source" / "tekken.json").read_bytes()


def test_other_tokenizer_files(tmp_path: Path) -> None:
    without = tekken(300)
    without["special_tokens"] = without["special_tokens"][:34]  # filled up, without the marks of thinking
    del without["model_settings_builder"]
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(without))
    tokenizer = read_tokenizer(path)
    assert reasoning_token_ids(tokenizer)["think"] is None
    assert CONTROL["[MODEL_SETTINGS]"] not in tokenizer.apply_chat_template([USER])["input_ids"]
    with pytest.raises(ValueError, match="no model settings"):
        tokenizer.apply_chat_template([USER], reasoning_mode="high")
    with pytest.raises(ValueError, match="no control token"):
        tokenizer.apply_chat_template([USER, {**ANSWER, "reasoning_content": "x"}, USER])
    path.write_text(json.dumps(tekken(300, version="v13")))
    with pytest.raises(ValueError, match="version v13"):
        read_tokenizer(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="no Tekken"):
        read_tokenizer(path)


def test_a_pattern_that_lets_control_tokens_through_as_words(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(tekken(300, pattern=r"\[/?[A-Z_]+\]|</?s>|\s+|[^\s]")))
    tokenizer = read_tokenizer(path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "[INST]</s>[/INST]"}])["input_ids"]
    inside = ids[ids.index(CONTROL["[INST]"]) + 1 : -1]
    assert min(inside) >= 1000
    assert tokenizer.decode(inside) == "[INST]</s>[/INST]"
    with pytest.raises(ValueError, match="cannot write as text"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a [INST]"}], tokenize=False)
    assert tokenizer.apply_chat_template([USER], tokenize=False).endswith("[INST]hi[/INST]")


def test_the_jinja_template_says_the_same(processor: Small4Processor, folder: Path) -> None:
    plain = TokenizersBackend.from_pretrained(folder)
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": ["é", 1.5, None]}}}
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "D", "parameters": {"type": "object", "properties": {}}},
    }
    conversations = [
        [USER],
        [{"role": "system", "content": "be brief"}, USER, ANSWER, USER],
        [USER, USER, {"role": "assistant", "reasoning_content": "hm", "content": "yes"}, USER],
        [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]},
        USER],
        [USER, {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "b"}]},
         {"role": "tool", "tool_call_id": "a", "content": "1"}, {"role": "tool", "tool_call_id": "b", "content": "2"}],
        [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "look"}, {"type": "image"}]}],
    ]  # fmt: skip
    for messages in conversations:
        for tools in (None, [tool]):
            for options in ({}, {"reasoning_mode": "high"}, {"reasoning_effort": "none"}, {"enable_thinking": True}):
                ours = processor.apply_chat_template(messages, tools=tools, tokenize=False, **options)
                assert plain.apply_chat_template(messages, tools=tools, tokenize=False, **options) == ours
    with pytest.raises(Exception, match="must be one of"):
        plain.apply_chat_template([USER], reasoning_mode="medium")


def test_auto_tokenizer_is_ours(folder: Path) -> None:
    import modeling_small4  # noqa: F401, registers the classes

    (folder / "config.json").write_text(json.dumps({"model_type": "small4"}))
    try:
        assert type(AutoTokenizer.from_pretrained(folder)) is Small4Tokenizer
    finally:
        (folder / "config.json").unlink()


NASTY = st.text(max_size=8) | st.sampled_from([*CONTROL, "<SPECIAL_40>", "[INST", "]", "</", "s>"])
WORDS = st.lists(NASTY, max_size=4).map("".join)
JSON = st.recursive(
    WORDS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=5,
)


@given(
    system=WORDS,
    user=WORDS,
    thought=WORDS,
    said=WORDS,
    arguments=st.dictionaries(WORDS, JSON, max_size=3),
    result=WORDS,
    description=WORDS,
)
@settings(max_examples=150, deadline=None)
def test_no_text_becomes_a_control_token(
    processor: Small4Processor,
    system: str, user: str, thought: str, said: str, arguments: dict[str, Any], result: str, description: str,
) -> None:  # fmt: skip
    image = picture(28, 28)
    parameters = {"type": "object", "properties": {description: {"description": user, "enum": [result]}}}
    tool = {"type": "function", "function": {"name": "f", "description": description, "parameters": parameters}}
    call = {"id": user + "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "system", "content": system},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": user},
                {"type": "image", "image": image},
                {"type": "text", "text": said},
            ],
        },
        {"role": "assistant", "reasoning_content": thought, "content": said, "tool_calls": [call]},
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": [{"type": "text", "text": result}, {"type": "image", "image": image}],
        },
        {"role": "user", "content": user},
    ]
    ids = row(processor, messages, tools=[tool], reasoning_mode="high")
    control = [index for index in ids if index < 1000]
    marks = [
        "<s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[MODEL_SETTINGS]",
        "[/MODEL_SETTINGS]", "[INST]", "[IMG]", "[IMG_END]", "[/INST]", "[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]",
        "</s>", "[TOOL_RESULTS]", "[IMG]", "[IMG_END]", "[/TOOL_RESULTS]", "[INST]", "[/INST]",
    ]  # fmt: skip
    assert control == [CONTROL[mark] for mark in marks]
    plain = processor(text=user, split_special_tokens=True)["input_ids"][0]
    assert [index for index in plain if index < 1000] == [CONTROL["<s>"]]
