"""The shipped demo checkpoint, as a user meets it: answers, thoughts, pictures, a thinking budget, and what its folder
may hold.
"""

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from PIL import Image, ImageDraw
from transformers import AutoModelForCausalLM, AutoProcessor

import modeling_small4
from model_card.demo_recipe.tasks.data import corpus
from model_card.demo_recipe.tasks.judge import correct
from model_card.demo_recipe.vocabulary import write_tekken
from model_card.evals.answers import measured_answers
from model_card.evals.demo_checkpoint import held_out
from model_card.tekken_content import RANKS

FOLDER = modeling_small4.demo_checkpoint()
ROOT = Path(__file__).resolve().parent.parent
# The least accuracy in mode `high`.
TARGETS = {
    "arithmetic": 0.95,
    "word_problem": 0.9,
    "puzzle": 0.9,
    "program": 0.9,
    "tools": 0.95,
    "picture": 0.95,
    "talk": 0.9,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


def accuracy(model: Any, processor: Any, task: str, mode: str, count: int, batch: int, **draw: Any) -> float:
    rows = held_out(task, mode, count, **draw)
    given = measured_answers(model, processor, rows, batch, mode)
    return sum(correct(row, one["message"]) for row, one in zip(rows, given, strict=True)) / count


def ask(model: Any, processor: Any, content: Any, mode: str | None = None, **options: Any) -> dict[str, Any]:
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )  # fmt: skip
    tokens = model.generate(**inputs, reasoning_mode=mode, **options)
    return processor.parse_response(tokens[0, inputs["input_ids"].shape[1] :])


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_folder_is_small_and_holds_data_only() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}
    for path in files:
        if path.suffix == ".json":
            assert "auto_map" not in path.read_text("utf-8"), path
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "small4"
    assert config["architectures"] == ["Small4ForCausalLM"]


def test_the_weights_are_bfloat16_and_all_there(model: Any) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.config.text_config.softmax_scale_rule == "released"


def test_the_vocabulary_is_the_one_the_script_writes(tmp_path: Path) -> None:
    write_tekken(tmp_path / "tekken.json")
    assert (tmp_path / "tekken.json").read_bytes() == (FOLDER / "tekken.json").read_bytes()


# -- the tokenizer against mistral-common
# ----------------------------------------------------------------------------------


def test_texts_get_mistral_commons_ids(processor: Any) -> None:
    authority = Tekkenizer.from_file(FOLDER / "tekken.json")
    strange = [
        "",
        " ",
        "naïve café 日本語 🙂",
        "a\n\n b\t c  ",
        "[INST]</s>[THINK]",
        "1234567",
        "don't SHOUT!",
        "\r\n\x00",
    ]
    for text in [*list(corpus(random.Random(9)))[:1500], *strange]:
        assert processor.tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        ) == authority.encode(text, bos=False, eos=False)
    assert len(processor.tokenizer) == authority.n_words
    for rank, name in RANKS.items():
        assert processor.tokenizer.convert_tokens_to_ids(name) == rank


@pytest.mark.parametrize("mode", ["none", "high"])
def test_a_chat_with_a_picture_gets_mistral_commons_ids_and_pixels(processor: Any, mode: str) -> None:
    image = Image.new("RGB", (150, 90), "green")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}],
        },
    ]
    request = ChatCompletionRequest.from_openai(messages, reasoning_effort=mode)
    theirs = MistralTokenizer.from_file(FOLDER / "tekken.json").encode_chat_completion(request)
    ours = processor.apply_chat_template(
        messages, reasoning_mode=mode, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert ours["input_ids"][0].tolist() == theirs.tokens
    torch.testing.assert_close(ours["pixel_values"][0], torch.tensor(theirs.images[0]).float(), atol=1e-3, rtol=0)


# -- what it can do ----------------------------------------------------------------------------------------------------


def stored(*keys: str) -> dict[str, Any]:
    """A score of `model_card/results/demo_eval.json`: the same number of rows are the same rows."""
    score = json.loads((ROOT / "model_card/results/demo_eval.json").read_text("utf-8"))
    for key in keys:
        score = score[key]
    return score


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TARGETS))
@pytest.mark.parametrize("mode", ["none", "high"])
def test_held_out_accuracy_is_the_stored_one(model: Any, processor: Any, task: str, mode: str) -> None:
    score = stored("tasks", task, mode)
    low, high = score["interval_95"]
    # All rows at once, for the answers of many take hardly more steps than those of a few.
    assert low <= accuracy(model, processor, task, mode, score["rows"], score["rows"]) <= high


@pytest.mark.slow
def test_facts_are_found_in_four_thousand_tokens(model: Any, processor: Any) -> None:
    """Of the stored rows the first ones, for all 73 take a minute; no fewer than the interval of all allows."""
    low = stored("retrieval", "4096", "high")["interval_95"][0]
    assert accuracy(model, processor, "retrieval", "high", 8, 1, context=4096) >= int(8 * low) / 8


@pytest.mark.parametrize("task", TARGETS)
def test_tasks_are_solved(task: str) -> None:
    assert stored("tasks", task, "high")["accuracy"] >= TARGETS[task]


def test_calls_are_valid_and_right_and_far_facts_found() -> None:
    for share in ("valid", "right"):
        assert stored("tool_calls", "high", share)["accuracy"] >= 0.95
    assert stored("retrieval", "4096", "high")["accuracy"] >= 0.9


@pytest.mark.parametrize("task", ["arithmetic", "word_problem", "puzzle", "program"])
def test_thinking_pays_where_it_should(task: str) -> None:
    assert stored("tasks", task, "high")["accuracy"] >= stored("tasks", task, "none")["accuracy"] + 0.2


@pytest.mark.parametrize("budget", [0, 8])
def test_a_cut_thought_still_gives_an_answer(model: Any, processor: Any, budget: int) -> None:
    rows = held_out("arithmetic", "high", 12)
    for given in measured_answers(model, processor, rows, 12, "high", budget):
        assert given["thinking_tokens"] <= budget
        assert given["content"].strip().lstrip("-").isdigit()


@pytest.mark.parametrize(
    ("colour", "shape", "size"),
    [
        ("red", "circle", (64, 64)),
        ("blue", "square", (300, 200)),
        ("green", "triangle", (120, 160)),
        ("yellow", "circle", (400, 300)),
    ],
)
def test_a_drawn_picture_is_described(
    model: Any, processor: Any, colour: str, shape: str, size: tuple[int, int]
) -> None:
    width, height = size
    image = Image.new("RGB", size, "white")
    pen, x, y, r = ImageDraw.Draw(image), width // 2, height // 2, min(size) // 3
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is in this picture?"}]
    for mode in ("none", "high"):
        assert ask(model, processor, content, mode)["content"] == f"a {colour} {shape}"


def test_high_thinks_and_none_does_not(model: Any, processor: Any) -> None:
    worked = ask(model, processor, "What is 348 + 276?", "high")
    assert worked["content"] == "624"
    assert worked["reasoning_content"].split("\n") == ["348+276", "8+6=14", "4+7+1=12", "3+2+1=6", "624"]
    direct = ask(model, processor, "What is 3 + 4?", "none")
    assert (direct["reasoning_content"], direct["content"]) == (None, "7")
