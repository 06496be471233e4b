"""Damaged settings, tokenizers, templates and Tekken files are refused by whoever reads them, with file and key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import python
from jinja2.exceptions import TemplateError
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from safetensors.torch import load_file
from small4_conversion.convert import Options, convert
from small4_conversion.staging import MERGING, private_folder
from small4_conversion.tekken_file import read_tekken
from small4_conversion.tokenizer import read_tokenizer
from transformers import AutoTokenizer

from model_card.evals.fuzz.cases import unreadable
from model_card.evals.fuzz.damage import at
from modeling_small4 import (
    Small4Config,
    Small4ForCausalLM,
    Small4ImageProcessor,
    Small4Processor,
    Small4TextConfig,
    Small4Tokenizer,
)
from modeling_small4.chat_messages import read_messages
from modeling_small4.files_reading import one_line
from modeling_small4.tokenization_checks import check_reasoning_settings, check_tokenizer
from tests.tekken_files import tekken

USER = {"role": "user", "content": "Hi"}
Change = Callable[[Any], object]


def refused(read: Callable[[], object], *words: str) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        read()
    assert unreadable(str(caught.value)) is None, caught.value
    assert all(word in str(caught.value) for word in words), caught.value


def to(place: str, value: Any) -> Change:
    """A change of a JSON tree: a value at a place like `config/pattern`; numbers are indices."""
    *parents, last = [int(part) if part.isdecimal() else part for part in place.split("/")]
    return lambda tree: at(tree, tuple(parents)).__setitem__(last, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (to("config/pattern", 5), "config.pattern"),
        (to("config/pattern", ""), "config.pattern"),
        (to("config/default_vocab_size", True), "config.default_vocab_size"),
        (to("config/default_num_special_tokens", 2000), "special tokens"),
        (to("special_tokens", {}), "special_tokens"),
        (to("special_tokens/5", 1), "special_tokens[5]"),
        (to("special_tokens/5/rank", 6), "special_tokens[5]"),
        (to("special_tokens/5/token_str", "</s>"), "both"),
        (lambda tree: tree["special_tokens"][3].pop("rank"), "special_tokens[3]"),
        (to("special_tokens/5/token_str", "x"), "both written"),
        (to("vocab", "x"), "vocab"),
        (lambda tree: tree["vocab"].pop(), "vocab"),
        (to("vocab/300", None), "vocab[300]"),
        (to("vocab/300/rank", 7), "vocab[300]"),
        (to("vocab/300/token_bytes", "?"), "vocab[300]"),
        (to("vocab/300/token_bytes", "QQ=="), "same bytes"),
        (to("vocab/30/token_bytes", "QQ=="), "vocab[30]"),
        (to("model_settings_builder", 1), "model_settings_builder"),
        (to("model_settings_builder/reasoning_effort/values", []), "values"),
        (to("model_settings_builder/reasoning_effort/values/1", [1]), "values"),
        (to("model_settings_builder/reasoning_effort/default", "low"), "default"),
        (to("model_settings_builder/reasoning_effort/type", "number"), "enum"),
    ],
)  # fmt: skip
def test_tekken_files(tmp_path: Path, change: Change, words: str) -> None:
    """Refused where mistral-common refuses, by the entry; and where it reads ids that other readers do not."""
    file, tree = tmp_path / "tekken.json", tekken(400, control=100)
    change(tree)
    file.write_text(json.dumps(tree))
    refused(lambda: read_tekken(file), str(file), words)
    if words not in ("both written", "config.pattern", "special_tokens", "special_tokens[5]", "vocab[300]"):
        with pytest.raises(Exception):  # noqa: B017, PT011
            Tekkenizer.from_file(file).encode("x", bos=False, eos=False)


def test_tekken_patterns_that_leave_out_text(tmp_path: Path) -> None:
    file, tree = tmp_path / "tekken.json", tekken(400, control=100)
    for pattern in ("x", r"\p{L}+", r"[^\n]"):
        tree["config"]["pattern"] = pattern
        file.write_text(json.dumps(tree))
        refused(lambda: read_tokenizer(file), str(file), "leaves out")
    tree["special_tokens"][50]["token_str"] = "x" * 5000
    file.write_text(json.dumps(tree))
    refused(lambda: read_tokenizer(file), str(file), "special_tokens[50]")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (to("model", []), "model"),
        (to("model/type", "WordPiece"), "model"),
        (to("model/continuing_subword_prefix", "x"), "model.continuing_subword_prefix"),
        (to("model/end_of_word_suffix", "x"), "model.end_of_word_suffix"),
        (to("model/vocab", ["a"]), "model.vocab"),
        (lambda tree: tree["model"]["vocab"].update(x1=5), "same id 5"),
        (lambda tree: tree["model"]["vocab"].update(x1=-1), "model.vocab"),
        (lambda tree: tree["model"]["vocab"].update(x1=1.5), "model.vocab"),
        (to("model/merges", None), "model.merges"),
        (to("model/merges/0", ["a", "never seen"]), "model.merges[0]"),
        (to("model/merges/0", 5), "model.merges[0]"),
        (to("added_tokens", {}), "added_tokens"),
        (to("added_tokens/3", 1), "added_tokens[3]"),
        (to("added_tokens/3/special", "yes"), "added_tokens[3]"),
        (to("added_tokens/3/id", 4), "same id"),
        (to("added_tokens/3/content", "</s>"), "twice"),
        (to("added_tokens/3/content", "x" * 300), "more than 200"),
        (to("added_tokens/3/content", "x"), "model.vocab"),
        (to("pre_tokenizer", None), "pre_tokenizer"),
        (lambda tree: tree["pre_tokenizer"]["pretokenizers"].pop(), "pre_tokenizer"),
        (to("pre_tokenizer/pretokenizers/0/pattern", {"String": "x"}), "Regex"),
        (to("pre_tokenizer/pretokenizers/0/behavior", "Removed"), "behavior"),
        (to("pre_tokenizer/pretokenizers/1/add_prefix_space", True), "add_prefix_space"),
        (to("normalizer", {"type": "Lowercase"}), "normalizer"),
        (to("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}), "normalizer"),
        (lambda tree: tree.update(decoder=tree["normalizer"], normalizer=tree["decoder"]), "normalizer"),
        (to("decoder", None), "decoder"),
        (lambda tree: tree.update(decoder=tree["normalizer"]), "decoder"),
        (to("post_processor/single", []), "post_processor.single"),
        (lambda tree: tree["post_processor"]["single"].append(tree["post_processor"]["single"][1]), "the text once"),
    ],
)  # fmt: skip
def test_tokenizers(folder: Path, tmp_path: Path, change: Change, words: str) -> None:
    tree = json.loads((folder / "tokenizer.json").read_bytes())
    check_tokenizer(tree)
    change(tree)
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    for reader in (Small4Tokenizer, AutoTokenizer):
        refused(lambda: reader.from_pretrained(tmp_path), str(tmp_path / "tokenizer.json"), words)  # noqa: B023


def test_a_long_value_does_not_make_a_long_message(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    given = json.loads((folder / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(given | {"padding_side": "x" * 5000}))
    with pytest.raises(ValueError, match="Padding side") as error:
        Small4Tokenizer.from_pretrained(tmp_path)
    assert len(str(error.value).replace(str(tmp_path), "")) < 400


@pytest.mark.parametrize(
    "settings", [1, [], {}, {"values": ["none"]}, {"values": "none", "default": "none"},
                 {"values": ["none", "low"], "default": "none"}, {"values": ["none"], "default": "high"}],
)  # fmt: skip
def test_reasoning_settings(folder: Path, tmp_path: Path, settings: Any) -> None:
    check_reasoning_settings(None)
    check_reasoning_settings({"values": ["none", "high"], "default": "high"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    given = json.loads((folder / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(given | {"reasoning_settings": settings}))
    refused(lambda: Small4Tokenizer.from_pretrained(tmp_path), "tokenizer_config.json", "reasoning_settings")


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ x", "{{ messages[9].content }}", "{{ 1 is nothing }}", "{{ 1 + none }}"]
)
def test_templates(folder: Path, template: str) -> None:
    processor = Small4Processor.from_pretrained(folder)
    for each in (processor, processor.tokenizer):
        refused(lambda: each.apply_chat_template([USER], chat_template=template), "chat template")  # noqa: B023
        with pytest.raises(TemplateError, match="own words"):  # what a template says itself
            each.apply_chat_template([USER], chat_template="{{ raise_exception('own words') }}")


IMAGE_SETTINGS: list[tuple[str, Any]] = [
    *(("patch_size", value) for value in (0, -1, 1.5, True, None, "14", [14], 10**12)),
    *(("image_mean", value) for value in ("x", True, [1, 2], [1, 2, "x"], [[1]] * 3, {})),
    *(("image_std", value) for value in ("x", False, [1], [1, 2, None], [{}] * 3, {})),
    *(("image_mean", [float("nan")] * 3), ("image_std", [1, 1, 0]), ("rescale_factor", "x"), ("do_resize", "no")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), IMAGE_SETTINGS, ids=str)
def test_image_settings(tmp_path: Path, name: str, value: Any) -> None:
    sound = Small4ImageProcessor().to_dict()
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(sound | {name: value}))
    refused(lambda: Small4ImageProcessor.from_pretrained(tmp_path), str(file), name)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": sound | {name: value}}))
    refused(lambda: Small4ImageProcessor.from_pretrained(tmp_path), "processor_config.json", name)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": value}))
    if not isinstance(value, dict) and value is not None:
        refused(lambda: Small4ImageProcessor.from_pretrained(tmp_path), "processor_config.json", "object")


def test_one_number_or_an_array_for_each_channel() -> None:
    three = Small4ImageProcessor(image_mean=[0.5] * 3, image_std=(0.25,) * 3)
    one = Small4ImageProcessor(image_mean=0.5, image_std=0.25)
    image = torch.full((3, 20, 30), 0.75)
    torch.testing.assert_close(one.preprocess(image)["pixel_values"], three.preprocess(image)["pixel_values"])
    array = three.preprocess(image, image_mean=torch.tensor([0.5] * 3), image_std=torch.tensor([0.25] * 3))
    torch.testing.assert_close(array["pixel_values"], three.preprocess(image)["pixel_values"])


def test_a_folder_without_configuration_is_no_released_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for reader in (Small4Config, Small4TextConfig, Small4ForCausalLM):
        refused(lambda: reader.from_pretrained(tmp_path), str(tmp_path / "config.json"))  # noqa: B023
    (tmp_path / "generation_config.json").write_bytes((folder / "generation_config.json").read_bytes())
    config = Small4Config.from_pretrained(folder)
    model = Small4ForCausalLM.from_pretrained(tmp_path, config=config)
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")["lm_head.weight"])


def test_false_is_no_number() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
    refused(lambda: Small4TextConfig(rope_parameters=rope | {"beta_slow": False}), "beta_slow")
    assert Small4TextConfig(rope_parameters=rope | {"beta_slow": 0}).rope_parameters["beta_slow"] == 1.0


def test_long_names_are_cut_in_errors() -> None:
    call = {"id": "x" * 5000, "type": "function", "function": {"name": "y" * 5000, "arguments": {1: {2}}}}
    refused(lambda: read_messages([USER, {"role": "assistant", "tool_calls": [call]}]), "y" * 50)
    assert one_line("a\0b\x1b\u200b\ud800").isprintable()


SAVE = """
import os, signal, sys, safetensors.torch
from modeling_small4 import Small4ForCausalLM
import transformers.modeling_utils as host
left, save = [3], host.safe_save_file
def watch(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "killed" else [][0]
    save(*args, **kwargs)
model = Small4ForCausalLM.from_pretrained(sys.argv[1])
host.safe_save_file = watch if sys.argv[2] != "early" else (lambda *args, **kwargs: [][0])
model.lm_head.weight.data += 1
model.save_pretrained(sys.argv[1], max_shard_size="40KB")
"""


@pytest.mark.parametrize(("how", "loads"), [("killed", False), ("failed", False), ("early", True)])
def test_shards_of_two_saves_are_not_loaded(folder: Path, tmp_path: Path, how: str, loads: bool) -> None:
    model = Small4ForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    done = python("-c", SAVE, str(tmp_path), how)
    assert done.returncode == (-9 if how == "killed" else 1)
    assert how == "killed" or "IndexError" in done.stderr
    if loads:
        assert torch.equal(Small4ForCausalLM.from_pretrained(tmp_path).lm_head.weight, model.lm_head.weight)
    else:
        with pytest.raises((ValueError, OSError)):
            Small4ForCausalLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert torch.equal(Small4ForCausalLM.from_pretrained(tmp_path).lm_head.weight, model.lm_head.weight)
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("purpose", ["", MERGING])
def test_a_refused_run_clears_what_a_killed_one_left(
    folder: Path, tmp_path: Path, purpose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had put its folder in place, and was killed before it removed its own."""
    out = tmp_path / "out"
    convert(folder, out, Options(to="mistral"))
    with monkeypatch.context() as killed:
        killed.setattr("small4_conversion.staging._remove", lambda private, place: None)
        with private_folder(out, purpose):
            pass
    assert len(list(tmp_path.iterdir())) == 3
    refused(lambda: convert(folder, out), "exists already")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_names_of_shards_that_cannot_be_printed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for name in ("model-\x0f.safetensors", "model-\n.safetensors", "model-\ud800.safetensors"):
        index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(lambda: Small4ForCausalLM.from_pretrained(tmp_path), "model.safetensors.index.json")
