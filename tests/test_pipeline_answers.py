"""What the generation pipelines return: clean text, the thought apart; and which images they read."""

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import pipeline

import modeling_small4
from modeling_small4 import ImageAccess, Small4Processor
from modeling_small4.pipelines import Small4ImageTextToTextPipeline, Small4TextGenerationPipeline
from tests.tekken_files import CONTROL

CHAT = [{"role": "user", "content": "What is 3 + 4?"}]
IMAGE = Image.new("RGB", (50, 30), "blue")
TASKS = ["text-generation", "image-text-to-text"]
ANSWERS = {
    "plain": (["7", "</s>"], "7", None),
    "cut": (["7"], "7", None),
    "thinking": (["[THINK]", "hm", "[/THINK]", "7", "</s>"], "7", "hm"),
    "spelled": (["[/INST]7", "</s>"], "[/INST]7", None),
}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """Replaces `generate` by one that notes its inputs and answers with `parts`: special tokens and texts."""
    seen: dict[str, Any] = {"parts": ["7", "</s>"]}
    encode = Small4Processor.from_pretrained(folder).tokenizer.encode_texts

    def generate(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen["options"] = kwargs
        new = [index for part in seen["parts"] for index in ([CONTROL[part]] if part in CONTROL else encode([part])[0])]
        rows = input_ids.repeat_interleave(kwargs.get("num_return_sequences", 1), dim=0)
        return torch.cat([rows, torch.tensor([new] * len(rows))], dim=1)

    monkeypatch.setattr(modeling_small4.Small4ForCausalLM, "generate", generate)
    return seen


def made(folder: Path, task: str) -> Any:
    pipe = pipeline(task, model=str(folder))
    kind = Small4TextGenerationPipeline if task == "text-generation" else Small4ImageTextToTextPipeline
    assert type(pipe) is kind
    return pipe if task == "text-generation" else lambda chat, **options: pipe(text=chat, **options)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_are_clean(folder: Path, scripted: dict[str, Any], task: str, answer: str) -> None:
    pipe = made(folder, task)
    scripted["parts"], content, thought = ANSWERS[answer]
    for prompt in (CHAT, "What is 3 + 4?"):
        for options in ({}, {"skip_special_tokens": True}):
            found = pipe(prompt, return_full_text=False, **options)[0]
            assert found["generated_text"] == content
            assert found.get("reasoning_content") == thought
        raw = pipe(prompt, return_full_text=False, skip_special_tokens=False)[0]["generated_text"]
        assert raw == "".join(scripted["parts"])
    assert pipe("What is 3 + 4?")[0]["generated_text"] == "What is 3 + 4?" + content
    message = pipe(CHAT)[0]["generated_text"][-1]
    assert (message["content"], message["reasoning_content"]) == (content, thought)


@pytest.mark.parametrize("task", TASKS)
def test_a_begun_answer_is_gone_on_with(folder: Path, scripted: dict[str, Any], task: str) -> None:
    pipe = made(folder, task)
    scripted["parts"] = [" is 7", "</s>"]
    begun = {"role": "assistant", "content": "The sum"}
    found = pipe([*CHAT, begun])[0]["generated_text"]
    assert found == [*CHAT, {"role": "assistant", "content": "The sum is 7"}]
    assert pipe([*CHAT, begun], return_full_text=False)[0]["generated_text"] == " is 7"
    if task == "image-text-to-text":
        chunks = {"role": "assistant", "content": [{"type": "text", "text": "The sum"}]}
        found = pipe([*CHAT, chunks])[0]["generated_text"][-1]["content"]
        assert found == [{"type": "text", "text": "The sum is 7"}]
    assert len(begun) == 2


@pytest.mark.parametrize("task", TASKS)
def test_several_answers_and_ids(folder: Path, scripted: dict[str, Any], task: str) -> None:
    pipe = made(folder, task)
    options = (
        {"generate_kwargs": {"num_return_sequences": 2}} if task != "text-generation" else {"num_return_sequences": 2}
    )
    found = pipe(CHAT, return_full_text=False, **options)
    assert [record["generated_text"] for record in found] == ["7", "7"]
    assert list(pipe(CHAT, return_tensors=True)[0]["generated_token_ids"])[-1] == CONTROL["</s>"]


def test_images_beside_a_text_are_read_only_when_allowed(
    folder: Path, scripted: dict[str, Any], tmp_path: Path
) -> None:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    IMAGE.save(tmp_path / "a.png")
    pipe = pipeline("image-text-to-text", model=str(folder))
    url = f"http://127.0.0.1:{server.server_port}/x.png"
    try:
        for source in (url, str(tmp_path / "a.png"), f"file://{tmp_path / 'a.png'}", [[url]]):
            for text in ("[IMG]What?", "What?"):
                with pytest.raises(ValueError, match="not allowed"):
                    pipe(images=source, text=text)
                with pytest.raises(ValueError, match="not allowed"):
                    pipe({"images": source, "text": text})
    finally:
        server.shutdown()
    assert asked == []
    for options in ({}, {"image_access": ImageAccess(paths=True)}):
        source = str(tmp_path / "a.png") if options else IMAGE
        found = pipe(images=source, text="[IMG]What?", return_full_text=False, **options)
        assert found[0]["generated_text"] == "7"
        assert scripted["options"]["pixel_values"].shape[0] == 1
    pipe.processor.image_processor.access = ImageAccess(paths=(tmp_path,))
    assert pipe(images=tmp_path / "a.png", text="What?")[0]["generated_text"] == "What?7"
