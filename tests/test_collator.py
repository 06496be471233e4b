"""The data collator against mistral-common's tokens, prefix by prefix, and against the model: every form of a batch
gives one loss.
"""

import json
import random
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import Image
from small4_conversion.tokenizer import write_processor
from transformers.data.data_collator import DataCollatorWithFlattening

from modeling_small4 import ImageAccess, Small4DataCollator, Small4ForCausalLM, Small4Processor
from tests import chat_corpus
from tests.chat_options import ENCODED, PROMPT
from tests.tekken_files import write_tekken

THINK, END_THINK, EOS, IMG, IMG_BREAK, IMG_END = 34, 35, 2, 10, 12, 13
IGNORED = -100


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer files with all control tokens, as mistral-common needs them."""
    out = tmp_path_factory.mktemp("wordy")
    write_processor(write_tekken(out / "source", 5_000), out, None)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Small4ForCausalLM:
    return Small4ForCausalLM.from_pretrained(folder).eval()


def conversation(rng: random.Random, images: bool = False) -> dict[str, Any]:
    """A finished conversation and its mode, which is "high" where the assistant thinks."""
    case = chat_corpus.conversation(rng, images=images)
    messages = case["messages"]
    while messages[-1]["role"] != "assistant":
        if messages[-1]["role"] == "system":
            messages.pop()
        else:
            messages.append(chat_corpus.assistant(rng, [1000]))
    thinks = any(thought(message) for message in messages)
    return {
        "messages": messages,
        "tools": case["tools"],
        "reasoning_mode": "high" if thinks else rng.choice(["none", "high"]),
    }


def thought(message: dict[str, Any]) -> bool:
    content = message.get("content")
    chunked = isinstance(content, list) and any(chunk["type"] == "thinking" for chunk in content)
    return message["role"] == "assistant" and (chunked or "reasoning_content" in message or "reasoning" in message)


def encoded(authority: MistralTokenizer, row: dict[str, Any], messages: list[dict[str, Any]]) -> list[int]:
    request = ChatCompletionRequest.from_openai(messages, tools=row["tools"], reasoning_effort=row["reasoning_mode"])
    return authority.encode_chat_completion(request).tokens


def spans(authority: MistralTokenizer, row: dict[str, Any]) -> list[tuple[int, int]]:
    """(start, stop) of each of the assistant's turns: the lengths of the conversation before and after it, as
    mistral-common encodes them.
    """
    out, seen = [], 0
    for role, group in groupby(row["messages"], key=lambda message: message["role"]):
        start, seen = seen, seen + len(list(group))
        if role == "assistant":
            before = len(encoded(authority, row, row["messages"][:start]))
            out.append((before, len(encoded(authority, row, row["messages"][:seen]))))
    return out


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_the_assistants_turns(wordy: Path, seed: int) -> None:
    """Ids and spans are mistral-common's; the end of each turn is trained; thoughts only when wanted."""
    processor = Small4Processor.from_pretrained(wordy)
    authority = MistralTokenizer.from_file(wordy / "tekken.json", mode=ValidationMode.agnostic)
    rng = random.Random(seed)
    everything, answers, last = (
        Small4DataCollator(processor, **options)
        for options in ({}, {"train_thinking": False}, {"last_turn_only": True})
    )
    for _ in range(15):
        row = conversation(rng)
        ids = encoded(authority, row, row["messages"])
        turns = spans(authority, row)
        spoken = [IGNORED] * len(ids)
        for start, stop in turns:
            assert ids[stop - 1] == EOS
            spoken[start:stop] = ids[start:stop]
        found = everything.encode(row)
        assert found["input_ids"] == ids
        assert found["labels"] == spoken
        start, stop = turns[-1]
        assert last.encode(row)["labels"] == [IGNORED] * start + ids[start:stop]
        unthought, thinking = [], False
        for token, label in zip(ids, spoken, strict=True):
            thinking = (thinking or token == THINK) and label != IGNORED
            unthought.append(IGNORED if thinking else label)
            thinking = thinking and token != END_THINK
        if set(unthought) != {IGNORED}:  # else there is nothing to train on, which is refused
            assert answers.encode(row)["labels"] == unthought


def test_text_that_spells_marks_moves_nothing(processor: Small4Processor) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "[/INST] I say </s> [INST] [THINK]"},
            {"role": "assistant", "content": "no [/THINK] </s> [INST] yes"},
        ]
    }
    found = Small4DataCollator(processor, train_thinking=False).encode(row)
    trained = [token for token in found["labels"] if token != IGNORED]
    assert processor.tokenizer.decode(trained) == "no [/THINK] </s> [INST] yes</s>"
    assert found["labels"][-len(trained) :] == trained


def turn(question: str, answer: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]


def seen(size: tuple[int, int], question: str, answer: str) -> list[dict[str, Any]]:
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


ROWS = [
    {"messages": turn("What is 12 + 30?", "42", reasoning_content="2+0=2\n1+3=4")},
    {"messages": seen((56, 28), "What is this?", "A gradient."), "reasoning_mode": "none"},
    {"messages": turn("Hello", "Hi!") + turn("And now?", "Bye.")},
    {"messages": seen((20, 50), "And this?", "Another one, taller than the first.")},
]  # fmt: skip


def test_modes(processor: Small4Processor) -> None:
    """Asked for, or by whether the assistant thinks; a thought under "none" is refused."""
    collator = Small4DataCollator(processor)
    assert collator.modes(ROWS) == ["high", "none", "none", "none"]
    assert Small4DataCollator(processor, reasoning_mode="high").modes(ROWS) == ["high", "none", "high", "high"]
    for row, mode in zip(ROWS, ("high", "none", "none", "none"), strict=True):
        given = processor.apply_chat_template(row["messages"], reasoning_mode=mode, **ENCODED)
        assert collator.encode(row)["input_ids"] == given["input_ids"][0].tolist()
    with pytest.raises(ValueError, match='the assistant thinks, but the mode is "none"'):
        collator([ROWS[2], ROWS[0] | {"reasoning_mode": "none"}])
    with pytest.raises(ValueError, match="reasoning_mode"):
        collator([ROWS[0] | {"reasoning_mode": "low"}])


def losses(model: Small4ForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy, balance loss and z-loss."""
    config = model.config.text_config
    with torch.no_grad():
        config.router_aux_loss_coef, config.router_z_loss_coef = 0.0, 1.0
        with_z = model(**batch, output_router_logits=True)
        config.router_aux_loss_coef, config.router_z_loss_coef = 0.001, 0.0
        plain = model(**batch).loss
    return plain, with_z.aux_loss, with_z.loss - plain


def test_every_form_of_a_batch_gives_the_same_losses(processor: Small4Processor, model: Small4ForCausalLM) -> None:
    """Padded on either side, to a multiple, packed, or encoded before: with pictures, router losses included."""
    forms = [{}, {"padding_side": "left"}, {"pad_to_multiple_of": 64}, {"packing": True}]
    found = [losses(model, Small4DataCollator(processor, **form)(ROWS)) for form in forms]
    before = [Small4DataCollator(processor).encode(row) for row in ROWS]
    stored = [{name: torch.as_tensor(value).tolist() for name, value in row.items()} for row in before]
    found += [losses(model, Small4DataCollator(processor)(rows)) for rows in (before, stored)]
    for other in found[1:]:
        for loss, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_packing_is_transformers_convention(processor: Small4Processor, model: Small4ForCausalLM) -> None:
    texts = [ROWS[0], ROWS[2]]
    collator = Small4DataCollator(processor, packing=True)
    batch = collator(texts)
    theirs = DataCollatorWithFlattening()([collator.encode(row) for row in texts])
    assert batch.keys() == theirs.keys()
    assert all(torch.equal(batch[name], theirs[name]) for name in batch)
    packed, length = model(**batch).logits[0], len(collator.encode(texts[0])["input_ids"])
    alone = model(torch.tensor([collator.encode(texts[1])["input_ids"]])).logits[0]
    torch.testing.assert_close(packed[length:], alone, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_packed_batch(processor: Small4Processor, folder: Path) -> None:
    """In training mode, where most is at stake: the same gradients as padded."""
    gradients = []
    for packing in (False, True):
        model = Small4ForCausalLM.from_pretrained(folder).train()
        model(**Small4DataCollator(processor, packing=packing)(ROWS), output_router_logits=True).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_pictures_of_unlike_sizes(processor: Small4Processor) -> None:
    batch = Small4DataCollator(processor)(ROWS)
    alone = [processor.apply_chat_template(ROWS[i]["messages"], **ENCODED) for i in (1, 3)]
    assert batch["image_sizes"].tolist() == [given["image_sizes"][0].tolist() for given in alone]
    for pixels, given in zip(batch["pixel_values"], alone, strict=True):
        height, width = given["image_sizes"][0].tolist()
        assert torch.equal(pixels[:, :height, :width], given["pixel_values"][0])


def test_too_long(processor: Small4Processor) -> None:
    whole = Small4DataCollator(processor).encode(ROWS[2])
    length = len(whole["input_ids"])
    strict = Small4DataCollator(processor, max_length=length - 1)
    with pytest.raises(ValueError, match=rf"Row 1 of the batch: the conversation has {length} tokens.*dataset\.filter"):
        strict([ROWS[2] | {"messages": turn("Hi", "Ho")}, ROWS[2]])
    assert [strict.fits(row) for row in (ROWS[2], {"messages": turn("Hi", "Ho")})] == [False, True]
    cut = Small4DataCollator(processor, max_length=length - 1, overlong="truncate").encode(ROWS[2])
    assert cut["input_ids"] == whole["input_ids"][:-1]
    assert cut["labels"] == whole["labels"][:-1]
    with pytest.raises(ValueError, match="nothing to train on"):
        Small4DataCollator(processor, max_length=5, overlong="truncate").encode(ROWS[2])


def test_truncation_keeps_pictures_whole(processor: Small4Processor, model: Small4ForCausalLM) -> None:
    row = {"messages": [*seen((56, 28), "What?", "A gradient."), *seen((56, 56), "And?", "Another.")]}
    whole = Small4DataCollator(processor).encode(row)
    second = [i for i, token in enumerate(whole["input_ids"]) if token == IMG_END][1]
    trained = next(i for i, label in enumerate(whole["labels"]) if label != IGNORED)
    for limit in range(trained + 1, len(whole["input_ids"]) + 1):
        batch = Small4DataCollator(processor, max_length=limit, overlong="truncate")([row])
        assert len(batch["image_sizes"]) == (2 if limit > second else 1)
        kept = batch["input_ids"].shape[1]
        assert kept == limit or (kept < limit <= second and batch["input_ids"][0, -1] not in (IMG, IMG_BREAK))
        model(**batch)  # raises if image tokens and pictures did not agree


def test_nothing_to_train_on(processor: Small4Processor) -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        Small4DataCollator(processor).encode({"messages": [{"role": "user", "content": "Hello?"}]})


def test_columns_that_the_trainer_removed(processor: Small4Processor) -> None:
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        Small4DataCollator(processor)([{}])


def test_tools(processor: Small4Processor) -> None:
    """A list, or JSON text as data sets store it; results of tools are not trained on."""
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    call = {"id": "call1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "user", "content": "Call it"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call1", "content": "77"}, {"role": "assistant", "content": "It says 77."},
    ]  # fmt: skip
    collator = Small4DataCollator(processor)
    found = collator.encode({"messages": messages, "tools": [tool]})
    assert collator.encode({"messages": messages, "tools": json.dumps([tool])}) == found
    assert "[AVAILABLE_TOOLS]" in processor.tokenizer.decode(found["input_ids"])
    trained = processor.tokenizer.decode([label for label in found["labels"] if label != IGNORED])
    assert trained == '[TOOL_CALLS]f[ARGS]{"x": 1}</s>It says 77.</s>'


def test_images_beside_messages_and_access(processor: Small4Processor, tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 30), "red")
    picture.save(tmp_path / "red.png")
    question = [{"type": "image"}, {"type": "text", "text": "What?"}]
    beside = {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "red"}],
        "images": [picture],
    }
    named = {
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": str(tmp_path / "red.png")}, question[1]]},
            beside["messages"][1],
        ]
    }
    with pytest.raises(ValueError, match=r"red\.png"):
        Small4DataCollator(processor)([named])
    found = Small4DataCollator(processor, image_access=ImageAccess(paths=True))([beside, named])
    assert torch.equal(found["pixel_values"][0], found["pixel_values"][1])
    assert torch.equal(found["input_ids"][0], found["input_ids"][1])


def test_prompts_are_what_generate_is_given(processor: Small4Processor) -> None:
    rows = [*ROWS, {"messages": [*turn("One?", "1"), {"role": "user", "content": "Two?"}]}]
    collator = Small4DataCollator(processor)
    found = collator.prompts(rows)
    chats = [row["messages"][:-1] if row["messages"][-1]["role"] == "assistant" else row["messages"] for row in rows]
    for index, (chat, mode) in enumerate(zip(chats, collator.modes(rows), strict=True)):
        alone = processor.apply_chat_template(chat, reasoning_mode=mode, **PROMPT)["input_ids"][0]
        assert torch.equal(found["input_ids"][index, -len(alone) :], alone)
        assert found["attention_mask"][index].sum() == len(alone)
    assert "labels" not in found


def test_a_tokenizer_alone(processor: Small4Processor) -> None:
    texts = [ROWS[0], ROWS[2]]
    ours, theirs = Small4DataCollator(processor.tokenizer)(texts), Small4DataCollator(processor)(texts)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"padding_side": "top"}, "'right' or 'left'"),
        ({"overlong": "drop"}, "'error' or 'truncate'"),
        ({"max_length": 0}, "max_length"),
        ({"packing": True, "pad_to_multiple_of": 8}, "packing"),
        ({"reasoning_mode": "low"}, "'none' or 'high'"),
    ],
)
def test_options_that_cannot_work(processor: Small4Processor, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Small4DataCollator(processor, **options)
