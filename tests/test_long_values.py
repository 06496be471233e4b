"""A value that is wrong and long is shown in part: each message stays one line that can be read."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import raw_checkpoint as rc
import torch
from small4_conversion import ownership
from small4_conversion.adapters import read_adapter
from small4_conversion.against import Fault
from small4_conversion.checks.answers import Question, image_of, read_questions
from small4_conversion.checks.rows import FAILED, Row, table
from small4_conversion.files import weight_files
from small4_conversion.formats.announced import announced
from small4_conversion.manifest import read as read_manifest
from small4_conversion.raw import config_from_params
from small4_conversion.transformers_layout import config_from_transformers

from modeling_small4 import ImageAccess, Small4Config, Small4ImageProcessor
from modeling_small4.drafts_loading import drafting_for
from modeling_small4.files_reading import check_weights
from modeling_small4.image_sources import load_image
from modeling_small4.loss import loss_in_chunks
from modeling_small4.network.fetch import fetch
from modeling_small4.planner.hardware import parse_machine
from modeling_small4.planner.layout import plan
from modeling_small4.server.conversation import from_messages
from modeling_small4.server.errors import ApiError

LONG = "é\n'" * 20_000
# A control, an escape sequence, a right-to-left override, half a surrogate pair, a line of its own.
HOSTILE = "\x07\x1b[31m\u202egnp\ud800\u2028\u200b" + LONG
CONFIG = Small4Config()
USER = {"role": "user", "content": "a"}
ROOT = Path(__file__).parents[1] / "modeling_small4"

CASES: dict[str, Callable[[], Any]] = {
    "a device": lambda: parse_machine(LONG),
    "one device of several": lambda: parse_machine("4xH100 + " + LONG),
    "a precision": lambda: plan(CONFIG, "4xH100", LONG),
    "a layout": lambda: plan(CONFIG, "4xH100", "fp8", layout=LONG),
    "a draft": lambda: drafting_for(torch.nn.Linear(2, 2), [LONG]),
    "an image's path": lambda: load_image(LONG, ImageAccess()),
    "an image's path that may be read": lambda: load_image("/" + LONG, ImageAccess(paths=True)),
    "an image's URL": lambda: load_image("http://a/" + LONG, ImageAccess()),
    "an image's host": lambda: load_image("http://" + "a" * 60_000 + "/x", ImageAccess()),
    "a host that is not allowed": lambda: fetch("http://" + "a" * 60_000 + "/x", ImageAccess(hosts=("b.example",))),
    "data that is none": lambda: load_image("data:" + LONG, ImageAccess()),
    "a setting of images": lambda: Small4ImageProcessor(patch_size=LONG),
    "a chunk of the loss": lambda: loss_in_chunks(torch.nn.Linear(2, 2), torch.ones(1, 2, 2), torch.ones(1, 2), LONG),
    "a role": lambda: from_messages([USER | {"role": LONG}]),
    "a type of content": lambda: from_messages([USER | {"content": [{"type": LONG}]}]),
    "a field of a message": lambda: from_messages([USER | {LONG: 1}]),
}


@pytest.mark.parametrize("case", CASES)
def test_messages_of_long_values_are_short(case: str) -> None:
    with pytest.raises((ValueError, OSError, ApiError)) as refused:
        CASES[case]()
    said = str(refused.value)
    assert "\n" not in said
    assert 20 < len(said) < 900  # those of devices name all that are known


FILE = Path("config.json")
TEXT = {"model_type": "mistral4"}


def _wrong(value: str) -> dict[str, Callable[[Path], Any]]:
    """Readers of checkpoints, each with this value where another belongs."""

    def quantized(**entry: Any) -> Callable[[Path], Any]:
        return lambda folder: announced({"quantization_config": entry}, FILE)

    def written(name: str, content: dict[str, Any], read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def call(folder: Path) -> Any:
            (folder / name).write_text(json.dumps(content), "utf-8")
            return read(folder)

        return call

    def index(content: dict[str, str]) -> Callable[[Path], Any]:
        return written("i.json", {"weight_map": content}, lambda folder: weight_files(folder, "i.json", "*"))

    def refused(folder: Path) -> None:
        raise ValueError(f"{ownership.why_no_checkpoint(folder)}; it is kept")

    def adapter(folder: Path) -> None:
        (folder / "adapter_model.safetensors").touch()
        read_adapter(folder)

    def transformers(**rope: Any) -> Callable[[Path], Any]:
        return lambda folder: config_from_transformers(TEXT | {"rope_parameters": rope}, "released", True, FILE)

    return {
        "a number": lambda folder: config_from_params(rc.params(dim=value), FILE),
        "a setting that is fixed": lambda folder: config_from_params(rc.params(sliding_window=value), FILE),
        "a text model": lambda folder: config_from_transformers({"text_config": value}, "released", True, FILE),
        "its rotary settings": lambda folder: config_from_transformers(TEXT | {"rope_scaling": value}, "", True, FILE),
        "their amplitude": transformers(attention_factor=value),
        "a quantization": lambda folder: announced({"quantization_config": value}, FILE),
        "the release's quantization": lambda folder: announced({"quantization": value}, FILE),
        "its method": quantized(quant_method=value),
        "its algorithm": quantized(quant_method="modelopt", quant_algo=value),
        "its blocks": quantized(quant_method="fp8", weight_block_size=value),
        "its bits": quantized(quant_method="awq", bits=value),
        "its packing": quantized(quant_method="gptq", checkpoint_format=value),
        "its format": quantized(quant_method="compressed-tensors", format=value),
        "MLX's mode": lambda folder: announced({"quantization": {"bits": 4, "group_size": 64, "mode": value}}, FILE),
        "a tensor outside": index({value: "/etc/a"}),
        "a file outside": index({"a": "../" + value}),
        "a file with a long name": index({"a": "é" * 60_000 + value[:1] + ".safetensors"}),
        "the same, before it is loaded": written(
            "model.safetensors.index.json",
            {"metadata": {}, "weight_map": {"a": "é" * 60_000 + value[:1] + ".safetensors"}},
            check_weights,
        ),
        "a file that is no safetensors": index({"a": value.replace("/", "")}),
        "a model type": written("config.json", {"model_type": value}, refused),
        "a kind of adapter": written("adapter_config.json", {"peft_type": value}, adapter),
        "a version": written(
            "m.json", {"format": "small4-manifest", "version": value}, lambda folder: read_manifest(folder / "m.json")
        ),
        "a question's key": written(
            "q.json", {"prompts": [{"ask": "", value: 1}]}, lambda folder: read_questions(folder / "q.json")
        ),
        "a drawing": lambda folder: image_of(Question("", image="drawing:" + value)),
    }


@pytest.mark.parametrize("value", [LONG, HOSTILE], ids=["long", "hostile"])
@pytest.mark.parametrize("case", _wrong(""))
def test_what_a_checkpoint_says_wrongly_is_shown_in_part(case: str, value: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError)) as refused:
        _wrong(value)[case](tmp_path)
    said = str(refused.value)
    assert said.isprintable()
    assert 20 < len(said) <= 600
    assert not said.endswith("letters)"), "the sentence is cut before it says what is allowed"


def test_two_original_contexts_contradict_each_other() -> None:
    given = rc.params()
    given["llama_4_scaling"] = given["llama_4_scaling"] | {"original_max_position_embeddings": 33}
    with pytest.raises(ValueError, match=r"^params.json: llama_4_scaling and yarn differ in original_max_position"):
        config_from_params(given, Path("params.json"))


def test_faults_of_a_check_stay_on_their_lines() -> None:
    fault = Fault("extra tensor", HOSTILE, f"is {HOSTILE}")
    assert str(fault).isprintable()
    assert len(str(fault)) <= 600
    lines = table([Row("headers", FAILED, "1 fault", [fault])]).splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_no_message_shows_a_value_of_a_user_by_itself() -> None:
    """In the server, the planner and the conversion `shown` writes every value."""
    rooms = [ROOT / "server", ROOT / "planner", ROOT.parent / "conversion"]
    own = {"allowed[0]", "value"}  # of raw.py's own tables
    for file in [*(file for room in rooms for file in sorted(room.rglob("*.py"))), ROOT / "cache.py"]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                text = ast.unparse(node.exc)
                names = set(re.findall(r"\{([^{}]*)!r\}", text)) - (own if file.name == "raw.py" else set())
                assert not names, f"{file.name}: {text}"
