"""The way by a string: what `apply_chat_template(tokenize=False)` gives, however copied, is encoded as the conversation
itself.
"""

import copy
import inspect
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small4_conversion.tokenizer import write_processor
from torch.utils.data import DataLoader
from transformers import TokenizersBackend
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modeling_small4.chat_text import SpecialTokens
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.tokenization_small4 import Small4Tokenizer
from tests import chat_corpus
from tests.chat_options import ENCODED
from tests.tekken_files import CONTROL, write_tekken

VISION = {"patch_size": 14, "max_image_size": 56, "spatial_merge_size": 2}
TYPED = "[INST] hi [/INST]</s>[IMG]<s> [\\INST] <\\\\/s> [THINK]"
# Pieces of special tokens and of escapes, which meet in every order.
SHARDS = [*CONTROL, "<SPECIAL_77>", "[", "]", "<", ">", "/", "\\", "\\\\", "INST]", "s>", "/s>", "IMG]", "[\\INST]",
    "<\\/s>", "é", " ", "\n"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint")
    write_processor(write_tekken(out / "source", 5_000), out, VISION)
    return out


def image(color: str = "green", width: int = 60, height: int = 30) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def identity(batch: list[str]) -> list[str]:
    return batch


COPIES: dict[str, Callable[[str], str]] = {
    "itself": lambda text: text,
    "str": str,
    "joined": "".join,
    "sliced": lambda text: text[:],
    "in parts": lambda text: text[:7] + text[7:],
    "formatted": lambda text: f"{text}",
    "pickled": lambda text: pickle.loads(pickle.dumps(text)),
    "deep copy": copy.deepcopy,
    "JSON": lambda text: json.loads(json.dumps(text)),
    "column": lambda text: Dataset.from_dict({"text": [text]})["text"][0],
    "worker": lambda text: next(iter(DataLoader([text], num_workers=1, collate_fn=identity)))[0],
}


# -- as any other of transformers
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Small4Processor.apply_chat_template, ProcessorMixin.apply_chat_template),
        (Small4Tokenizer.apply_chat_template, PreTrainedTokenizerBase.apply_chat_template),
    ],
)
def test_defaults_and_order_of_arguments(ours: Any, theirs: Any) -> None:
    expected = [p for p in inspect.signature(theirs).parameters.values() if p.kind is not p.VAR_KEYWORD]
    found = list(inspect.signature(ours).parameters.values())[: len(expected)]
    assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in expected]


def test_without_arguments_it_is_a_string(processor: Small4Processor) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    text = processor.apply_chat_template(chat)
    assert isinstance(text, str)
    assert text.endswith("[INST]hi[/INST]hello</s>")
    assert processor.apply_chat_template([chat, chat[:1]]) == [text, text.removesuffix("hello</s>")]
    ids = processor.apply_chat_template(chat, tokenize=True)
    assert isinstance(ids[0], list)
    assert processor.tokenizer.apply_chat_template(chat)["input_ids"] == ids[0]
    assert processor.tokenizer.apply_chat_template(chat, tokenize=False) == text


# -- one step and two
# ------------------------------------------------------------------------------------------------------


def conversation(named: bool, color: str) -> list[dict[str, Any]]:
    chunk = {"type": "image", "image": image(color)} if named else {"type": "image"}
    content = [{"type": "text", "text": TYPED}, chunk, {"type": "text", "text": TYPED}, chunk]
    answer = [{"type": "thinking", "thinking": TYPED}, {"type": "text", "text": TYPED}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("named", [True, False])
def test_a_copied_string_gives_the_ids_of_one_step(processor: Small4Processor, way: str, named: bool) -> None:
    chat, beside = conversation(named, "red"), [image("red"), image("red")]
    expected = processor.apply_chat_template(conversation(True, "red"), **ENCODED)
    text = COPIES[way](processor.apply_chat_template(chat))
    for images in (beside, [beside]):
        got = processor(text=text, images=images, return_tensors="pt")
        assert got["input_ids"].tolist() == expected["input_ids"].tolist()
        assert torch.equal(got["pixel_values"], expected["pixel_values"])
        assert torch.equal(got["image_sizes"], expected["image_sizes"])
    assert processor.apply_chat_template(chat, tokenize=True, images=beside) == expected["input_ids"].tolist()


def test_images_named_in_the_messages_need_not_be_given_again(processor: Small4Processor) -> None:
    chats = [conversation(True, "red"), conversation(False, "blue"), [{"role": "user", "content": "none"}]]
    images = [image("blue"), image("blue")]
    expected = processor.apply_chat_template([chats[0], conversation(True, "blue"), chats[2]], **ENCODED)
    texts = processor.apply_chat_template(chats)
    both = [[image("red"), image("red")], images, []]
    for given_images in (images, [[], images, []], [None, images, None], both, [*both[0], *both[1]]):
        got = processor(text=texts, images=given_images, return_tensors="pt")
        assert got["input_ids"].tolist() == expected["input_ids"].tolist()
        assert torch.equal(got["pixel_values"], expected["pixel_values"])
    plain = [str(text) for text in texts]
    assert (
        processor(text=plain, images=both, return_tensors="pt")["input_ids"].tolist() == expected["input_ids"].tolist()
    )


@pytest.mark.parametrize(("images", "numbers"), [
    ([[image()], [image()]], "2 places for images in prompt 1 and 1 images"),
    ([[image(), image()], []], "2 places for images in prompt 2 and 0 images"),
    ([image()] * 3, "4 places for images and 3 images"),
    (image(), "4 places for images and 1 images"),
    (None, "2 places for images in prompt 1 and 0 images"),
])  # fmt: skip
def test_another_number_of_images_is_refused_with_both_numbers(
    processor: Small4Processor, images: Any, numbers: str
) -> None:
    chats = [conversation(False, "red"), conversation(False, "red")]
    texts = processor.apply_chat_template(chats)
    for call in (
        lambda: processor(text=texts, images=images),
        lambda: processor(text=[str(text) for text in texts], images=images),
        lambda: processor.apply_chat_template(chats, tokenize=True, images=images),
    ):
        with pytest.raises(ValueError, match=numbers):
            call()


@pytest.mark.parametrize("typed", ["\U000f0000", "a\U000f0000", "\U000f0000[IMG]\U000f0001", "\U000f0001"])
def test_the_marks_of_transformers_templates_are_text(processor: Small4Processor, typed: str) -> None:
    """transformers leaves out an `[IMG]` behind U+F0000: the next image would take its place."""
    images = [Image.new("RGB", (32, 56)), Image.new("RGB", (28, 28))]
    content = [{"type": "text", "text": typed}, *({"type": "image", "image": image} for image in images)]
    messages = [{"role": "user", "content": content}]
    whole = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    text = processor.apply_chat_template(messages)
    assert processor(text=str(text), images=images)["input_ids"] == whole["input_ids"]


def test_places_of_replacements_are_those_of_transformers(processor: Small4Processor) -> None:
    texts, images = ["a[IMG]b[IMG]", "none", "[IMG][IMG]"], ["<1>", "<two>", "", "<4>"]
    theirs = ProcessorMixin.get_text_with_replacements(processor, [*texts], images)
    assert processor.get_text_with_replacements(texts, images) == theirs


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}"])
@pytest.mark.parametrize("what", ["message", "content", "deep"])
def test_a_conversation_that_holds_itself_is_refused(processor: Small4Processor, what: str, template: Any) -> None:
    message: dict[str, Any] = {"role": "user", "content": "x"}
    if what == "message":
        message["name"] = [message]
    elif what == "content":
        message["content"] = [{"type": "text", "text": message}]
    else:
        for _ in range(3000):
            message["content"] = [message["content"]]
    for part in (processor, processor.tokenizer):
        with pytest.raises(ValueError, match="nested too deeply, or holds itself"):
            part.apply_chat_template([message], chat_template=template, tokenize=False)
    with pytest.raises(ValueError, match="nested too deeply"):
        processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], chat_template="{{ more }}", tokenize=False, more=message
        )


def test_messages_may_be_objects(processor: Small4Processor) -> None:
    from dataclasses import dataclass

    from pydantic import BaseModel

    @dataclass
    class Message:
        role: str
        content: Any
        tool_calls: Any = None

    class Chunk(BaseModel):
        type: str
        text: str

    chat = [Message("user", [Chunk(type="text", text=TYPED)]), Message("assistant", "hello")]
    dicts = [{"role": "user", "content": TYPED}, {"role": "assistant", "content": "hello"}]
    assert processor.apply_chat_template(chat) == processor.apply_chat_template(dicts)
    assert processor.apply_chat_template([chat], tokenize=True) == processor.apply_chat_template([dicts], tokenize=True)


# -- nothing that users type becomes a special token
# -----------------------------------------------------------------------


def hostile(rng: random.Random) -> dict[str, Any]:
    """A conversation of the corpus, each text of it mixed with shards."""

    def mixed(value: Any) -> Any:
        if isinstance(value, str):
            return value + "".join(rng.choice(SHARDS) for _ in range(rng.randint(0, 8)))
        if isinstance(value, list):
            return [mixed(item) for item in value]
        kept = ("role", "id", "tool_call_id", "type", "name", "arguments", "image_url")
        if isinstance(value, dict):
            return {key: item if key in kept else mixed(item) for key, item in value.items()}
        return value

    case = chat_corpus.conversation(rng, images=False)
    return case | {"messages": mixed(case["messages"])}


def has_open_thought(messages: list[dict[str, Any]]) -> bool:
    """Text right behind an unclosed thought: two texts that no string keeps apart."""
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    return any(chunk.get("closed") is False for content in contents for chunk in content)


@pytest.mark.parametrize("seed", range(3))
def test_three_thousand_hostile_conversations(processor: Small4Processor, seed: int) -> None:
    """By the tokenizer and by the processor, in turns."""
    rng, tokenizer, refused = random.Random(seed), processor.tokenizer, 0
    for number in range(50):
        texts, expected = [], []
        for case in [hostile(rng) for _ in range(20)]:
            options = {name: case[name] for name in ("tools", "continue_final_message")} | {
                "reasoning_mode": case["mode"]
            }
            ids = tokenizer.apply_chat_template(case["messages"], **options)["input_ids"]
            try:
                texts.append(str(tokenizer.apply_chat_template(case["messages"], tokenize=False, **options)))
            except ValueError:
                if not has_open_thought(case["messages"]):
                    raise
                refused += 1
            else:
                expected.append(ids)
        encode = tokenizer if number % 2 else processor
        assert encode(text=texts)["input_ids"] == expected
    assert refused < 100


@pytest.mark.parametrize("seed", range(5))
def test_hostile_conversations_with_images(processor: Small4Processor, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(40):
        case = chat_corpus.conversation(rng)
        options = {"tools": case["tools"], "reasoning_mode": case["mode"]}
        options["continue_final_message"] = case["continue_final_message"]
        expected = processor.apply_chat_template(case["messages"], **options, **ENCODED)
        try:
            text = processor.apply_chat_template(case["messages"], **options)
        except ValueError:
            if not has_open_thought(case["messages"]):
                raise
            continue
        got = processor(text=str(text), images=list(text.images), return_tensors="pt")
        assert got["input_ids"].tolist() == expected["input_ids"].tolist()
        if "pixel_values" in expected:
            assert torch.equal(got["pixel_values"], expected["pixel_values"])


SPECIAL = SpecialTokens([*CONTROL, *(f"<SPECIAL_{number}>" for number in range(1000))])
SHARD_TEXT = st.lists(st.sampled_from(SHARDS) | st.text(max_size=3), max_size=10).map("".join)


@settings(max_examples=500, deadline=None)
@given(texts=st.lists(SHARD_TEXT, max_size=5), between=st.sampled_from(sorted(CONTROL)))
def test_escaping_is_one_to_one(texts: list[str], between: str) -> None:
    for text in texts:
        escaped = SPECIAL.escape(text)
        assert SPECIAL.is_plain(escaped)
        assert SPECIAL.unescape(escaped) == text
        assert SPECIAL.split(escaped) == ([(False, text)] if text else [])
        assert SPECIAL.unescape(SPECIAL.escape(escaped)) == escaped
    joined = between.join(SPECIAL.escape(text) for text in texts)
    expected = [part for text in texts for part in ((False, text), (True, between))][:-1]
    assert SPECIAL.split(joined) == [part for part in expected if part[1]]


@settings(max_examples=200, deadline=None)
@given(content=SHARD_TEXT.filter(bool), cut=st.integers(0, 60))
def test_a_string_cut_anywhere_never_turns_text_into_a_special_token(
    processor: Small4Processor, content: str, cut: int
) -> None:
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat)
    begin = text.index("[INST]") + len("[INST]")
    part = text[begin : min(begin + cut, len(text) - len("[/INST]"))]
    for shown in (part, text[begin + cut : len(text) - len("[/INST]")]):
        assert min(processor(text=shown, add_special_tokens=False)["input_ids"][0], default=1000) >= 1000


def test_a_prompt_and_its_completion_as_trl_cuts_them(processor: Small4Processor) -> None:
    prompt = [{"role": "user", "content": TYPED}]
    completion = [{"role": "assistant", "content": TYPED}]
    whole = processor.apply_chat_template(prompt + completion)
    shown = processor.apply_chat_template(prompt, add_generation_prompt=True)
    start = "".join(a for a, b in zip(shown, whole, strict=False) if a == b)
    ids = [processor(text=part, add_special_tokens=False)["input_ids"][0] for part in (start, whole[len(start) :])]
    assert ids[0] == processor.apply_chat_template(prompt, tokenize=True)[0]
    assert ids[0] + ids[1] == processor.apply_chat_template(prompt + completion, tokenize=True)[0]


def test_typed_tokens_stay_text_in_a_template_of_ones_own(processor: Small4Processor) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}[INST]{% if m.content is string %}{{ m.content }}{% else %}{% for c in "
        "m.content %}"
        "{{ '[IMG]' if c.type == 'image' else c.text }}{% endfor %}{% endif %}[/INST]{% endfor %}{{ note }}"
    )
    chat = [{"role": "user", "content": TYPED}]
    encode = processor.tokenizer.encode_texts
    expected = [1, 3, *encode([TYPED])[0], 4, *encode([TYPED])[0]]
    for one in (processor, processor.tokenizer):
        got = one.apply_chat_template(chat, chat_template=template, note=TYPED, tokenize=True, return_dict=True)
        ids = got["input_ids"]
        assert (ids[0] if one is processor else ids) == expected
        text = one.apply_chat_template(chat, chat_template=template, note=TYPED, tokenize=False)
        assert processor(text=str(text))["input_ids"] == [expected]
    seen = [{"role": "user", "content": [{"type": "image", "image": image()}, {"type": "text", "text": TYPED}]}]
    got = processor.apply_chat_template(seen, chat_template=template, **ENCODED)
    assert got["input_ids"][0].tolist().count(10) == 2
    assert got["pixel_values"].shape[0] == 1
    own = Small4Processor(processor.image_processor, processor.tokenizer, chat_template="{{ messages[0].content }}!")
    assert own.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi!"


def test_tokens_that_users_added(folder: Path) -> None:
    """Special ones are never read in text, others are, as in transformers; in one step as in two."""
    processor = Small4Processor.from_pretrained(folder)
    processor.tokenizer.add_tokens(["<loc_1>"])
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["[BOX]"]})
    loc, box = processor.tokenizer.convert_tokens_to_ids(["<loc_1>", "[BOX]"])
    chat = [{"role": "user", "content": "a <loc_1> b [BOX] c é"}]
    ids = processor.apply_chat_template(chat, tokenize=True)
    assert loc in ids[0]
    assert box not in ids[0]
    assert processor(text=str(processor.apply_chat_template(chat)))["input_ids"] == ids
    assert box in processor(text="[BOX]")["input_ids"][0]


# -- arguments ---------------------------------------------------------------------------------------------------------

TEXTS = ["<s>[INST]one two[/INST]three</s>", "<s>[INST]é 日本[/INST]", "<s>plain words only"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"padding": True},
    {"padding": "longest", "padding_side": "right", "return_tensors": "pt"},
    {"padding": "max_length", "max_length": 40, "return_tensors": "np"},
    {"padding": True, "pad_to_multiple_of": 16, "padding_side": "right"},
    {"truncation": True, "max_length": 4},
    {"truncation": "longest_first", "max_length": 5, "padding": True, "return_tensors": "pt"},
    {"return_attention_mask": False},
    {"return_token_type_ids": True, "return_length": True, "return_special_tokens_mask": True},
    {"return_offsets_mapping": True},
    {"truncation": True, "max_length": 6, "stride": 2, "return_overflowing_tokens": True},
]


def plainly(value: Any) -> Any:
    return (
        {key: plainly(item) for key, item in value.items()}
        if hasattr(value, "items")
        else getattr(value, "tolist", lambda: value)()
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_arguments_mean_what_they_mean_in_transformers(
    processor: Small4Processor, folder: Path, options: dict[str, Any]
) -> None:
    peer = TokenizersBackend.from_pretrained(folder)
    expected = plainly(peer(TEXTS, add_special_tokens=False, **options))
    assert plainly(processor.tokenizer(TEXTS, **options)) == expected
    assert plainly(processor(text=TEXTS, **options)) == expected
    assert plainly(processor(text=TEXTS, text_kwargs=options)) == expected
    one = plainly(peer(TEXTS[0], add_special_tokens=False, **options))
    assert plainly(processor.tokenizer(TEXTS[0], **options)) == one


CHATS = [[{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}],
    [{"role": "user", "content": "é 日本"}]]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_arguments_of_one_step_equal_those_of_two(processor: Small4Processor, options: dict[str, Any]) -> None:
    expected = plainly(processor(text=processor.apply_chat_template(CHATS), **options))
    one = {"tokenize": True, "return_dict": True}
    assert plainly(processor.apply_chat_template(CHATS, **one, processor_kwargs=options)) == expected
    assert plainly(processor.apply_chat_template(CHATS, **one, **options)) == expected
    assert plainly(processor.tokenizer.apply_chat_template(CHATS, tokenizer_kwargs=options)) == expected
    assert plainly(processor.tokenizer.apply_chat_template(CHATS, **options)) == expected


def test_kinds_of_tokens(processor: Small4Processor) -> None:
    chat = conversation(True, "red")
    for got in (
        processor.apply_chat_template(chat, **ENCODED, processor_kwargs={"return_mm_token_type_ids": True}),
        processor(text=processor.apply_chat_template(chat), return_mm_token_type_ids=True, return_tensors="pt"),
    ):
        assert got["mm_token_type_ids"].tolist() == [[int(i in (10, 12, 13)) for i in got["input_ids"][0].tolist()]]


@pytest.mark.parametrize(("options", "named"), [
    ({"colour": 1}, "colour"),
    ({"videos": [1]}, "videos"),
    ({"audio": [1]}, "audio"),
    ({"text_pair": "a"}, "text_pair"),
    ({"text_target": "a"}, "text_target"),
    ({"is_split_into_words": True}, "is_split_into_words"),
    ({"crop_size": {"height": 3, "width": 3}}, "crop_size"),
    ({"pad_size": {"height": 3, "width": 3}}, "pad_size"),
    ({"do_center_crop": True}, "do_center_crop"),
    ({"resample": 0}, "resample"),
    ({"do_convert_rgb": False}, "do_convert_rgb"),
    ({"size": {"height": 3, "width": 3}}, "size"),
    ({"padding": True, "text_kwargs": {"padding": False}}, "padding"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(
    processor: Small4Processor, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        processor(text="a", images=image(), **options)
    if named not in ("size", "padding"):  # which every tokenizer or template might mean
        with pytest.raises((ValueError, TypeError), match=named):
            processor(text="a", images=image(), **{"text_kwargs" if "text" in named else "images_kwargs": options})


def test_masks_and_strings_do_not_mix(processor: Small4Processor) -> None:
    for one in (processor, processor.tokenizer):
        for options in ({"tokenize": False}, {"tokenize": True, "return_dict": False}):
            with pytest.raises(ValueError, match="return_assistant_tokens_mask"):
                one.apply_chat_template(CHATS[0], return_assistant_tokens_mask=True, **options)
        with pytest.raises(ValueError, match="documents"):
            one.apply_chat_template(CHATS[0], documents=[{"text": "a"}])
    with pytest.raises(ValueError, match="cannot be combined with return_offsets_mapping"):
        processor.apply_chat_template(CHATS, **ENCODED, return_assistant_tokens_mask=True, return_offsets_mapping=True)


def test_masks_in_a_template_of_ones_own(processor: Small4Processor) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    options = {"chat_template": template, "return_assistant_tokens_mask": True, **ENCODED}
    chat = [{"role": "user", "content": TYPED}, {"role": "assistant", "content": TYPED}]
    for one in (processor, processor.tokenizer):
        out = one.apply_chat_template([chat, chat], padding=True, **options)
        expected = [*processor.tokenizer.encode_texts([TYPED])[0], 2]
        assert out["input_ids"][1][out["assistant_masks"][1].bool()].tolist() == expected


def test_images_that_a_template_has_no_place_for(processor: Small4Processor) -> None:
    template = (
        "{% for m in messages %}{% for c in m.content %}{{ image_token if c.type == 'image' else c.text }}{% "
        "endfor %}{% endfor %}"
    )
    chat = conversation(True, "red")[:1]
    with pytest.raises(ValueError, match="0 places for images and 2 images"):
        processor.apply_chat_template(chat, chat_template=template, tokenize=True)
    ids = processor.apply_chat_template(chat, chat_template=template, image_token="[IMG]", tokenize=True)
    assert ids[0].count(13) == 2


@pytest.mark.parametrize("name", ["add_special_tokens", "get_vocab"])
def test_an_argument_named_like_a_method_is_refused_as_transformers_does(name: str, folder: Path) -> None:
    """And the folder's files, which are right, are not blamed."""
    with pytest.raises(AttributeError, match=f"^{name} conflicts with the method"):
        Small4Tokenizer.from_pretrained(folder, **{name: True})
