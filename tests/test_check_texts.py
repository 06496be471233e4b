"""`small4 check` on tokenizers, templates, and the settings of images and of generation: damage is found and named, and
what other programs write passes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversion_cases import raw_case, run
from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
from small4_conversion import manifest
from small4_conversion.against import said_faults
from small4_conversion.checkpoint import Reader
from small4_conversion.checks import running
from small4_conversion.checks.rows import OK, SKIPPED, Row
from small4_conversion.checks.texts import text_rows
from small4_conversion.source import open_checkpoint

Change = Callable[[dict[str, Any]], object]


def rows(folder: Path) -> dict[str, Row]:
    return {row.check: row for row in text_rows(open_checkpoint(folder, strict=False))}


def told(folder: Path) -> list[str]:
    return [f"{fault.kind}: {fault}" for row in rows(folder).values() for fault in row.faults]


def change(file: Path, how: Change) -> None:
    content = json.loads(file.read_text("utf-8"))
    how(content)
    file.write_text(json.dumps(content), "utf-8")


def kept(folder: Path) -> manifest.Manifest:
    with Reader() as reader:
        return manifest.build(open_checkpoint(folder), reader)


def against(folder: Path, said: manifest.Manifest) -> list[str]:
    return [str(fault) for fault in said_faults(open_checkpoint(folder), said)]


IMAGES: dict[str, Any] = {
    "patch_size": 16,
    "spatial_merge_size": 1,
    "max_image_size": 14,
    "image_mean": 0,
    "image_std": [-0.26862954, 0.26130258, 0.27577711],
    "rescale_factor": 1,
    "do_normalize": False,
    "do_resize": False,
}


def test_settings_of_images(demo: Path, tmp_path: Path) -> None:
    run(demo, tmp_path / "hf", to="transformers")
    for folder in (demo, tmp_path / "hf"):
        assert rows(folder)["images"].status == OK
        for name, wrong in {**IMAGES, "BGR": [0.40821073, 0.4578275, 0.48145466]}.items():
            if (folder.name, name) == ("hf", "patch_size"):
                continue
            name = "image_mean" if name == "BGR" else name
            file = folder / "processor_config.json"
            text = file.read_text()
            if folder.name == "hf" and name == "max_image_size":
                change(file, lambda c: c["image_processor"].update(size={"longest_edge": 14}))
            elif folder.name == "hf" and name == "spatial_merge_size":
                change(file, lambda c: c.update(spatial_merge_size=1))
            else:
                change(file, lambda c, name=name, wrong=wrong: c["image_processor"].update({name: wrong}))  # type: ignore[misc]
            found = told(folder)
            assert len(found) == 1, (name, found)
            assert found[0].startswith(f"images: processor_config.json: {name} is "), (name, found)
            file.write_text(text)
    change(demo / "processor_config.json", lambda c: c["image_processor"].update(max_image_size=56))
    assert told(demo) == []  # smaller images are a choice
    file = tmp_path / "hf" / "processor_config.json"
    content = json.loads(file.read_text())  # older folders have two files
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(content.pop("image_processor")))
    file.write_text(json.dumps(content))
    assert told(tmp_path / "hf") == []
    change(tmp_path / "hf" / "preprocessor_config.json", lambda c: c.update(do_rescale=False))
    assert [each[:48] for each in told(tmp_path / "hf")] == ["images: preprocessor_config.json: do_rescale is "]
    change(tmp_path / "hf" / "preprocessor_config.json", lambda c: c.update(do_rescale=True))
    change(file, lambda c: c.update(patch_size=16))
    assert [each[:46] for each in told(tmp_path / "hf")] == ["images: processor_config.json: patch_size is 1"]
    change(demo / "tekken.json", lambda c: c["image"].update(image_patch_size=16))
    assert [each[:38] for each in told(demo)] == ["images: tekken.json: patch_size is 16,"]


def test_images_of_a_raw_folder_and_of_a_model_without_vision(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw")
    raw_case(tmp_path / "blind", "text only")
    assert told(tmp_path / "raw") == []
    change(tmp_path / "raw" / "tekken.json", lambda c: c["image"].update(spatial_merge_size=1))
    assert len(told(tmp_path / "raw")) == 1
    change(tmp_path / "raw" / "tekken.json", lambda c: c.pop("image"))
    assert rows(tmp_path / "raw")["images"].status == rows(tmp_path / "blind")["images"].status == SKIPPED


def reverse(content: dict[str, Any]) -> None:
    content["model"]["merges"].reverse()


def exchange(content: dict[str, Any]) -> None:
    merges = content["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def shorten(content: dict[str, Any]) -> None:
    del content["model"]["merges"][100]


@pytest.mark.parametrize("damage", [reverse, exchange, shorten])
@pytest.mark.parametrize("tekken", [True, False])
def test_merges(demo: Path, damage: Change, tekken: bool) -> None:
    said = kept(demo)
    if not tekken:
        (demo / "tekken.json").unlink()
    assert told(demo) == against(demo, said) == []
    change(demo / "tokenizer.json", damage)
    assert [each[:48] for each in told(demo)] == ["tokenizer: tokenizer.json: its merges are not th"]
    assert [each[:40] for each in against(demo, said)] == ["tokenizer.json: makes other tokens of te"]


def test_a_pattern_is_told_by_the_manifest(tmp_path: Path, demo: Path) -> None:
    raw_case(tmp_path / "raw")
    said = kept(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "ours")
    assert kept(tmp_path / "ours").text() == said.text()
    change(tmp_path / "raw" / "tekken.json", lambda c: c["config"].update(pattern=r"[\s\S]"))
    assert told(tmp_path / "raw") == []
    assert [each[:40] for each in against(tmp_path / "raw", said)] == ["tekken.json: makes other tokens of texts"]

    old = json.loads(said.text())
    del old["tokenizer"]["rules"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert against(tmp_path / "raw", manifest.read(tmp_path / "old.json")) == []

    change(demo / "tekken.json", lambda c: c["config"].update(pattern=r"[\s\S]"))
    assert ["otherwise than tekken.json" in each for each in told(demo)] == [True]


def test_what_is_put_around_a_text(demo: Path, tmp_path: Path) -> None:
    file = demo / "tokenizer.json"
    text = file.read_text("utf-8")
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}

    def framed(content: dict[str, Any], first: bool) -> None:
        content["post_processor"]["single"].insert(0 if first else 2, end)
        content["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}

    for first in (True, False):
        change(file, lambda content, first=first: framed(content, first))  # type: ignore[misc]
        assert ["post_processor" in each for each in told(demo)] == [True]
        file.write_text(text, "utf-8")
    change(file, lambda content: content.update(post_processor=None))
    assert ["post_processor" in each for each in told(demo)] == [True]
    file.write_text(text, "utf-8")
    run(demo, tmp_path / "hf", to="transformers")
    change(tmp_path / "hf" / "tokenizer.json", lambda content: content.update(post_processor=None))
    assert told(tmp_path / "hf") == []  # what transformers' own converter writes
    change(file, lambda content: content["model"].update(dropout=0.1))
    assert all("model.dropout is 0.1" in each for each in told(demo))
    assert told(demo)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda c: c.update(eos_token_id=3), "eos_token_id is 3"),
        (lambda c: c.update(eos_token_id=[2, 3]), None),
        (lambda c: c.pop("eos_token_id"), "eos_token_id is None"),
        (lambda c: c.update(pad_token_id=2), "pad_token_id is 2"),
        (lambda c: c.update(bos_token_id=2), "bos_token_id is 2"),
        (lambda c: c.update(suppress_tokens=[5, 2]), "suppress_tokens forbids </s>"),
        (lambda c: c.update(suppress_tokens=[10]), None),
        (lambda c: c.update(bad_words_ids=[[2]]), "bad_words_ids forbids </s>"),
        (lambda c: c.pop("reasoning_token_ids"), "reasoning_token_ids are missing"),
        (lambda c: c["reasoning_token_ids"].pop("think"), "no id for think"),
        (lambda c: c["reasoning_token_ids"].pop("tool_calls"), None),  # of older conversions
        (lambda c: c["reasoning_token_ids"].update(settings_high=[1]), "settings_high is [1]"),
    ],
)
def test_settings_of_generation(demo: Path, how: Change, says: str | None) -> None:
    change(demo / "generation_config.json", how)
    found = told(demo)
    assert [each.startswith("tokenizer: generation_config.json: ") for each in found] == ([True] if says else [])
    assert says is None or says in found[0]


def test_reasoning_ids_that_are_not_there(demo: Path, tmp_path: Path) -> None:
    run(demo, tmp_path / "hf", to="transformers")
    (tmp_path / "hf" / "generation_config.json").unlink()
    assert told(tmp_path / "hf") == []
    (demo / "generation_config.json").unlink()
    assert ["generation_config.json: is missing" in each for each in told(demo)] == [True]
    loaded, _ = running.loaded(demo, None)
    assert loaded is not None
    assert running.runs(loaded).status == OK


def test_special_tokens_under_other_names(demo: Path) -> None:
    change(demo / "tokenizer_config.json", lambda c: c.update(eos_token="[INST]"))
    assert ["eos_token is '[INST]'" in each for each in told(demo)] == [True]


CLAUSES = {
    "'none' %}{% endif": "'high' %}{% endif",  # the default
    "'high' if enable_thinking": "'none' if enable_thinking",
    "chunk.type in ['image', 'image_url'] %}[IMG]": "chunk.type in ['image', 'image_url'] %}[IMAGE]",
    "[/THINK]{% endif %}\n      {%- else": "{% endif %}\n      {%- else",
    "{{ ', ' }}": "{{ ',' }}",
    "[AVAILABLE_TOOLS][": "[TOOLS][",
    "{'reasoning_effort': mode}": "{'effort': mode}",
    "{{ '\\n\\n' }}{% else %}[INST]": "{{ ' ' }}{% else %}[INST]",
    "[c[-1]] + c[:-1]": "c",
    "{%- if after != 'user' %}[/INST]{% endif %}": "",
    "{%- if before == 'assistant' %}{{ '\\n\\n' }}{% endif %}": "",
    "[THINK]{{ message.reasoning_content }}[/THINK]": "<think>{{ message.reasoning_content }}</think>",
    "in message.tool_calls or []": "in (message.tool_calls or [])[:1]",
    "else call.function.arguments | tojson": "else call.function.arguments",
    "</s>{% endif %}": "{% if loop.index < 6 %}</s>{% endif %}{% endif %}",
    "[TOOL_RESULTS]": "[RESULTS]",
    "{%- for message in messages %}": "{%- for message in messages[:5] %}",
}


def test_every_clause_of_the_template_counts(demo: Path) -> None:
    file = demo / "chat_template.jinja"
    text = file.read_text("utf-8")
    for old, new in CLAUSES.items():
        assert text.count(old) == 1, old
        file.write_text(text.replace(old, new), "utf-8")
        found = rows(demo)["template"].faults
        assert found, old
        assert all(fault.what.startswith("chat_template.jinja, ") for fault in found)
        for fault in found:
            got, _, wanted = fault.reason.partition(", expected ")
            assert got.removeprefix("lays out ") != wanted, fault


def test_templates_of_others_pass(demo: Path) -> None:
    """mistral-common's own; and one that knows less than ours, which the row tells."""
    file = demo / "chat_template.jinja"
    text = file.read_text("utf-8")
    made = convert_tokenizer_to_chat_template(demo / "tekken.json")
    file.write_text(made, "utf-8")
    row = rows(demo)["template"]
    assert (row.status, row.faults) == (OK, [])
    assert "does not know" not in row.summary
    assert made.count("{{- '[TOOL_RESULTS]' -}}") == 1
    file.write_text(made.replace("{{- '[TOOL_RESULTS]' -}}", "{{- '[RESULTS]' -}}"), "utf-8")
    assert rows(demo)["template"].faults

    begin, end = text.index("{%- if message.reasoning_content"), text.index("{{- chunks(message.content if")
    less = text[:begin] + text[end:]
    refusal = "{%- if before == message.role and before == 'user' %}{{ raise_exception('no') }}{% endif %}"
    less = less.replace("{%- if message.role in ['system'", refusal + "{%- if message.role in ['system'")
    file.write_text(less, "utf-8")
    row = rows(demo)["template"]
    assert row.faults == []
    assert "a thought in reasoning_content, messages of one role in a row" in row.summary


def test_the_cause_of_a_template_that_cannot_be_rendered(demo: Path) -> None:
    file = demo / "chat_template.jinja"
    file.write_text(file.read_text("utf-8").replace("{%- for message in messages %}", "{%- fro message in messages %}"))
    (fault,) = rows(demo)["template"].faults
    assert "unknown tag 'fro'" in fault.reason


def test_faults_name_their_file(demo: Path, tmp_path: Path) -> None:
    said = kept(demo)
    for name, row in (("processor_config.json", "images"), ("tokenizer.json", "tokenizer")):
        file = demo / name
        text = file.read_text("utf-8")
        file.write_text(text[:-20], "utf-8")
        assert [(each.kind, each.what) for each in rows(demo)[row].faults] == [(row, name)]
        file.write_text(text, "utf-8")
    change(demo / "tokenizer.json", lambda c: c["model"].update(merges=None))
    assert [(each.kind, each.what) for each in rows(demo)["tokenizer"].faults] == [("tokenizer", "tokenizer.json")]
    (line,) = against(demo, said)
    assert line.startswith("tokenizer.json: model.merges")
    raw_case(tmp_path / "raw")
    said = kept(tmp_path / "raw")
    (tmp_path / "raw" / "tekken.json").unlink()
    assert against(tmp_path / "raw", said) == ["tekken.json: is missing, the manifest names a tokenizer"]
