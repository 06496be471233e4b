"""Both generation pipelines with the reasoning arguments, against `generate` on the same prompts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, pipeline

import modeling_small4  # noqa: F401  (registers the classes)
from tests.chat_options import PROMPT

torch.set_num_threads(1)
NEW = 12
CHATS = [
    [{"role": "user", "content": "What is 2 + 3?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there, my friend"}],
]
PICTURE = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (40, 30), (9, 99, 200))},
            {"type": "text", "text": "What?"},
        ],
    }
]
CASES: dict[str, dict[str, Any]] = {
    "as the prompt says": {},
    "none": {"reasoning_mode": "none"},
    "high": {"reasoning_mode": "high"},
    "high, briefly": {"reasoning_mode": "high", "max_thinking_tokens": 3},
}


def wanted(folder: Path, chat: list[dict[str, Any]], options: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    mode = options.get("reasoning_mode")
    inputs = processor.apply_chat_template(chat, reasoning_mode=mode, **PROMPT)
    new = model.generate(**inputs, **options, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return new.tolist(), processor.parse_response(new)


@pytest.mark.parametrize("case", CASES)
def test_text_generation(folder: Path, case: str) -> None:
    pipe = pipeline("text-generation", model=str(folder))
    options = {"max_new_tokens": NEW, "do_sample": False}
    expected = [wanted(folder, chat, CASES[case])[1] for chat in CHATS]
    for chat, message in zip(CHATS, expected, strict=True):
        found = pipe(chat, **options, **CASES[case])[0]["generated_text"]
        assert found[:-1] == chat
        for name in ("reasoning_content", "content"):
            assert (found[-1].get(name) or "") == (message[name] or "")
    together = pipe(CHATS, batch_size=2, **options, **CASES[case])
    assert [each[0]["generated_text"][-1]["content"] for each in together] == [each["content"] for each in expected]


def test_text_generation_with_the_mode_set_for_the_pipeline(folder: Path) -> None:
    pipe = pipeline("text-generation", model=str(folder), reasoning_mode="high", max_thinking_tokens=3)
    found = pipe(CHATS[0], max_new_tokens=NEW, do_sample=False)[0]["generated_text"][-1]
    assert found["reasoning_content"] == wanted(folder, CHATS[0], CASES["high, briefly"])[1]["reasoning_content"]


def test_text_generation_returns_ids_and_text_that_go_on_from_the_prompt(folder: Path) -> None:
    pipe = pipeline("text-generation", model=str(folder))
    options = {"max_new_tokens": NEW, "do_sample": False, **CASES["high"]}
    ids = pipe(CHATS[0], return_tensors=True, **options)[0]["generated_token_ids"]
    prompt = AutoProcessor.from_pretrained(folder).apply_chat_template(CHATS[0], tokenize=True)[0]
    assert list(ids) == prompt + wanted(folder, CHATS[0], CASES["high"])[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chat", ["text", "picture"])
def test_image_text_to_text(folder: Path, case: str, chat: str) -> None:
    pipe = pipeline("image-text-to-text", model=str(folder))
    messages = CHATS[0] if chat == "text" else PICTURE
    options = CASES[case] | {"do_sample": False}
    mode = options.get("reasoning_mode")
    found = pipe(text=messages, reasoning_mode=mode, max_new_tokens=NEW, generate_kwargs=options)[0]["generated_text"][
        -1
    ]
    expected = wanted(folder, messages, CASES[case])[1]
    for name in ("reasoning_content", "content"):
        assert (found.get(name) or "") == (expected[name] or "")
