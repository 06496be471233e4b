"""`small4 check` from the command line, the running model included; healthy checkpoints of every kind; damaged ones."""

import json
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import CASES, published_folder, raw_case, run
from small4_conversion import manifest
from small4_conversion.check import CheckOptions, check
from small4_conversion.checkpoint import CheckpointError
from small4_conversion.checks import questions, running
from small4_conversion.checks.answers import Question, _called, _holds, image_of, read_questions
from small4_conversion.checks.rows import FAILED, OK, SKIPPED, TOLD
from test_formats_expanded import EXPANDED, REGROUPED, made
from tiny_checkpoint import write_tiny_checkpoint

from model_card.demo_recipe.tasks.data import rows as demo_rows
from model_card.evals.fuzz.damage import damage
from modeling_small4 import Small4Config, Small4ForCausalLM
from modeling_small4.commands import cli
from modeling_small4.files_saving import MANIFEST

PROMPTS: list[dict[str, Any]] = [
    {"ask": "What is 348 + 276?", "expect": ["624"], "modes": ["high"]},
    {"ask": "What is 7 + 8?", "expect": "15"},
    {"ask": "What is in the picture?", "expect": ["red circle"], "image": "drawing: red circle", "modes": ["none"]},
    {
        "ask": "What is 12 times 7?",
        "call": {"name": "multiply", "arguments": {"a": 12, "b": 7}},
        "modes": ["none"],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "multiply",
                    "description": "Multiplies two numbers.",
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "a": {"type": "integer", "description": "One number."},
                            "b": {"type": "integer", "description": "The other."},
                        },
                        "required": ["a", "b"],
                    },
                },
            }
        ],
    },
]


def small4_check(folder: Path, *words: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and the rows of the JSON file by their names."""
    out = folder.parent / "out.json"
    status = cli.main(["check", str(folder), "--json", str(out), *map(str, words)])
    content = json.loads(out.read_text("utf-8"))
    assert content["failed"] == bool(status)
    assert str(folder.parent) not in json.dumps({**content, "checks": [{**c, "faults": []} for c in content["checks"]]})
    return status, {row["check"]: row for row in content["checks"]}


def faults(folder: Path, **options: Any) -> list[str]:
    report = check(folder, CheckOptions(**{"run": False} | options))
    return [f"{fault.kind}: {fault}" for row in report.rows for fault in row.faults]


@pytest.mark.slow
def test_the_demo_answers_and_its_softmax_scale_is_settled(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    (tmp_path / "prompts.json").write_text(json.dumps({"prompts": PROMPTS}))
    sums = demo_rows("held_out", 1, tasks={"arithmetic": 1.0}, modes={"high": 1.0})
    thoughts = [row["messages"][-1]["reasoning_content"] for row in islice(sums, 60)]
    (tmp_path / "text.txt").write_text("\n".join(thoughts))
    words = ("--prompts", tmp_path / "prompts.json", "--text", tmp_path / "text.txt")
    status, rows = small4_check(demo, *words)
    assert status == 0
    assert "nothing wrong was found" in capsys.readouterr().out
    assert rows["answers, none"]["summary"].startswith("3 of 3 right")
    assert rows["answers, high"]["summary"].startswith("2 of 2 right")
    settled = rows["softmax scale"]
    assert settled["status"] == OK
    assert settled["data"]["perplexity"]["released"] < settled["data"]["perplexity"]["transformers"]
    assert {"tokens_per_second", "peak_memory", "foretold_memory"} <= rows["beside the planner"]["data"].keys()

    config = json.loads((demo / "config.json").read_text())
    config["text_config"]["softmax_scale_rule"] = "transformers"
    (demo / "config.json").write_text(json.dumps(config))
    wrong = [PROMPTS[0] | {"expect": ["625"]}]
    (tmp_path / "prompts.json").write_text(json.dumps({"prompts": wrong}))
    status, rows = small4_check(demo, *words)
    assert status == 1
    assert [fault["kind"] for fault in rows["softmax scale"]["faults"]] == ["softmax rule"]
    assert rows["answers, high"]["status"] == FAILED
    assert rows["answers, high"]["data"]["answers"][0]["answer"]


def test_a_text_that_repeats_itself_decides_nothing(demo: Path) -> None:
    found, _ = running.loaded(demo, None)
    assert found is not None
    for text in ("What is 348 + 276? " * 60, "The cat sat on the mat. A boy ran to buy milk. It is raining. " * 20):
        row = running.softmax_scale(found, text)
        assert (row.status, row.data["standard_error"]) == (TOLD, None)
        assert "undecided" in row.summary


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_a_raw_release_runs_from_a_temporary_folder(tmp_path: Path, form: str) -> None:
    p = rc.params()
    plain = rc.weights(p, 8)
    if form == "fp8":
        rc.write_raw(tmp_path / "raw", rc.fp8_params(p), rc.to_fp8(plain, 8))
    else:
        rc.write_raw(tmp_path / "raw", rc.nvfp4_params(p), rc.to_nvfp4(plain)[0])
    before = {file.name: file.read_bytes() for file in (tmp_path / "raw").iterdir()}
    status, rows = small4_check(tmp_path / "raw")
    assert status == 0
    assert rows["runs"]["status"] == rows["load"]["status"] == OK
    assert rows["answers"]["status"] == rows["softmax scale"]["status"] == SKIPPED
    assert {file.name: file.read_bytes() for file in (tmp_path / "raw").iterdir()} == before


@pytest.mark.parametrize("name", CASES)
def test_every_healthy_kind_passes(tmp_path: Path, name: str) -> None:
    p, raw = raw_case(tmp_path / "raw", name, seed=20 + len(name))
    run(tmp_path / "raw", tmp_path / "ours")
    run(tmp_path / "raw", tmp_path / "hf", to="transformers")
    for folder in ("raw", "ours", "hf"):
        assert faults(tmp_path / folder) == [], folder
    dtype = ("int4", "fp8")[list(CASES).index(name) % 2]
    run(tmp_path / "ours", tmp_path / dtype, dtype=dtype)
    assert faults(tmp_path / dtype) == []
    assert faults(tmp_path / dtype, manifest=tmp_path / "ours" / MANIFEST) == []  # it is a copy of that
    (tmp_path / "published").mkdir()
    published_folder(tmp_path / "published", p, raw)
    assert faults(tmp_path / "published") == []


def test_other_healthy_checkpoints_pass(demo: Path, tmp_path: Path) -> None:
    assert faults(demo) == faults(demo, quick=True) == []
    assert faults(write_tiny_checkpoint(tmp_path / "tiny", seed=3)) == []
    model = Small4ForCausalLM.from_pretrained(demo)
    model.apply(model._init_weights)
    model.save_pretrained(demo)
    assert faults(demo) == []


SETTINGS: dict[str, tuple[str, object]] = {
    "hidden_act": ("text_config", "gelu"),
    "norm_topk_prob": ("text_config", False),
    "vision_feature_layer": ("", -2),
    "rms_norm_eps": ("vision_config", 1e-6),  # which transformers' layout cannot say either
    "truncate": ("rope_parameters", False),
    "rope_type": ("rope_parameters", "default"),
    "llama_4_scaling_beta": ("rope_parameters", None),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_another_layout_cannot_say_are_no_fault(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "tiny")
    content = json.loads((tmp_path / "tiny" / "config.json").read_text())
    place = {"": content, "rope_parameters": content["text_config"]["rope_parameters"], **content}[SETTINGS[name][0]]
    place[name] = SETTINGS[name][1]
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(content))
    report = check(tmp_path / "tiny", CheckOptions(run=False))
    assert [str(fault) for row in report.rows for fault in row.faults] == []
    row = next(row for row in report.rows if row.check == "read back")
    assert row.status == (SKIPPED if name == "rms_norm_eps" else OK), row
    assert name == "rms_norm_eps" or f"in {'mistral' if 'beta' in name else 'transformers'} layout" in row.summary


def test_biases_of_attention_belong_to_the_model(folder: Path, tmp_path: Path) -> None:
    config = Small4Config.from_pretrained(folder)
    config.text_config.attention_bias = True
    Small4ForCausalLM(config).save_pretrained(tmp_path / "biased")
    assert faults(tmp_path / "biased") == []
    run(tmp_path / "biased", tmp_path / "hf", to="transformers")
    assert faults(tmp_path / "hf", manifest=tmp_path / "hf" / MANIFEST) == []
    assert "layers.1.attention.wq_a.bias" in (tmp_path / "hf" / MANIFEST).read_text()


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_untrained_models_pass(folder: Path, tmp_path: Path, spread: float) -> None:
    config = Small4Config.from_pretrained(folder)
    config.text_config.initializer_range = config.vision_config.initializer_range = spread
    Small4ForCausalLM(config).save_pretrained(tmp_path / "untrained")
    assert faults(tmp_path / "untrained") == []


def test_quick_reads_samples_and_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    p = rc.params(moe={"num_experts": 12})
    rc.write_raw(tmp_path / "raw", p, rc.weights(p))
    assert cli.main(["manifest", str(tmp_path / "raw")]) == 0
    status, rows = small4_check(tmp_path / "raw", "--quick")
    assert status == 0
    assert "load" not in rows
    read, total = map(int, re.findall(r"(\d+) of (\d+) tensors", rows["numbers"]["summary"])[0])
    assert read < total / 2
    assert "samples only" in capsys.readouterr().out


def test_what_needs_a_manifest_is_said(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(demo), "--no-run"]) == 0
    out = capsys.readouterr().out
    assert "Without a manifest these are found" in out
    assert "swapped experts" in out
    assert cli.main(["manifest", str(demo)]) == 0
    capsys.readouterr()
    assert cli.main(["check", str(demo), "--no-run"]) == 0
    assert "Without a manifest" not in capsys.readouterr().out


def test_a_changed_template_is_found_and_an_equal_one_passes(demo: Path) -> None:
    file = demo / "chat_template.jinja"
    text = file.read_text("utf-8")
    file.write_text(text + "{# the same prompts #}", "utf-8")
    assert faults(demo) == []
    for old, new in (
        ("[INST]", "[INST] "),
        ("[THINK]", "<think>"),
        ("[AVAILABLE_TOOLS]", "[TOOLS]"),
        ("[IMG]", "<image>"),
    ):
        assert old in text
        file.write_text(text.replace(old, new), "utf-8")
        found = faults(demo)
        assert found, old
        assert all(fault.startswith("template: chat_template.jinja") for fault in found)


def test_tokenizer_files_that_do_not_belong_here(demo: Path) -> None:
    file = demo / "tokenizer.json"
    text = file.read_text("utf-8")
    content = json.loads(text)
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(content), "utf-8")
    assert any("other tokens than tekken.json" in fault for fault in faults(demo))
    file.write_text(text, "utf-8")
    settings = json.loads((demo / "generation_config.json").read_text())
    settings["reasoning_token_ids"]["think"] = 33
    (demo / "generation_config.json").write_text(json.dumps(settings))
    assert [fault[:33] for fault in faults(demo)] == ["tokenizer: generation_config.json"]


def test_the_original_params_contradict(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "ours", manifest=False)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config["text_config"]["softmax_scale_rule"] = "transformers"
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    assert [fault.split(":")[0] for fault in faults(tmp_path / "ours")] == ["softmax rule"]


def test_a_manifest_of_another_checkpoint(tmp_path: Path) -> None:
    for seed in (0, 1):
        raw_case(tmp_path / f"raw{seed}", seed=seed)
        assert cli.main(["manifest", str(tmp_path / f"raw{seed}")]) == 0
    other = manifest.of_folder(tmp_path / "raw1")
    assert other is not None
    assert len(faults(tmp_path / "raw0", manifest=tmp_path / "raw1" / MANIFEST)) == len(other.tensors)
    (tmp_path / "raw0" / MANIFEST).write_text("{")
    assert any(fault.startswith("manifest: ") for fault in faults(tmp_path / "raw0"))


@pytest.mark.parametrize("layout", ["raw", "ours"])
def test_damaged_folders_give_a_verdict(tmp_path: Path, layout: str) -> None:
    raw_case(tmp_path / "raw", "text only", shards=1)
    run(tmp_path / "raw", tmp_path / "ours")
    assert cli.main(["manifest", str(tmp_path / "raw")]) == 0
    for seed in range(40):
        folder = Path(shutil.copytree(tmp_path / layout, tmp_path / f"{layout}{seed}"))
        what = damage(folder, seed)
        report = check(folder, CheckOptions(run=False))
        assert report.rows, what
        assert report.text()
        json.dumps(report.content(), allow_nan=False)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [{"expect": ["a"]}]}, "'ask'"),
        ({"prompts": [{"ask": "a"}]}, "'expect'"),
        ({"prompts": [{"ask": "a", "expect": [1]}]}, "'expect'"),
        ({"prompts": [{"ask": "a", "expect": ["b"], "mode": "high"}]}, "'mode'"),
        ({"prompts": [{"ask": "a", "expect": ["b"], "modes": ["low"]}]}, "'modes'"),
        ({"prompts": [{"ask": "a", "expect": ["b"], "max_new_tokens": 0}]}, "'max_new_tokens'"),
        ({"prompts": [{"ask": "a", "expect": ["b"], "image": 1}]}, "'image'"),
        ({"prompts": [{"ask": "a", "expect": ["b"], "tools": {}}]}, "'tools'"),
    ],
)
def test_prompts_that_cannot_be_asked(tmp_path: Path, entry: dict[str, Any], says: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(entry))
    with pytest.raises(CheckpointError, match=says):
        read_questions(tmp_path / "p.json")


def test_when_an_answer_is_right() -> None:
    assert _holds("It is **Paris**.", "paris")
    assert not _holds("It is 1391.", "391")
    assert _holds("1,234 apples", "1234")
    assert not _holds("Parisian", "Paris")
    wanted = {"name": "f", "arguments": {"city": "Lyon"}}
    assert _called([{"name": "f", "arguments": '{"city": "lyon", "unit": "C"}'}], wanted)
    assert not _called([{"name": "f", "arguments": {"city": "Nice"}}], wanted)
    assert not _called([{"name": "g", "arguments": {"city": "Lyon"}}], wanted)


def test_the_shipped_prompts() -> None:
    """A few dozen, each of which can be asked; images can be drawn."""
    assert len(questions.QUESTIONS) >= 30
    assert len({question.ask for question in questions.QUESTIONS}) == len(questions.QUESTIONS)
    for question in questions.QUESTIONS:
        assert question.expect or question.call
        if question.image is not None:
            assert len(image_of(question).getcolors()) > 1
    with pytest.raises(ValueError, match="a color and one of"):
        image_of(Question("?", ("a",), image="drawing: red cat"))


@pytest.mark.parametrize("name", [*EXPANDED, *REGROUPED])
def test_checkpoints_of_other_tools_pass(tmp_path: Path, name: str) -> None:
    made(tmp_path / "hf", *(EXPANDED | REGROUPED)[name], half="gptq" in name or "awq" in name)
    assert cli.main(["manifest", str(tmp_path / "hf")]) == 0
    assert cli.main(["verify", str(tmp_path / "hf")]) == 0
    assert faults(tmp_path / "hf") == []


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0"])  # those that the library quantizes
def test_gguf_files_pass(tmp_path: Path, kind: str) -> None:
    gguf_folder = pytest.importorskip("gguf_folder")
    p = rc.params(vision=kind == "BF16", moe={"expert_hidden_dim": 256}, dim=256, q_lora_rank=256, kv_lora_rank=256)
    gguf_folder.write(tmp_path / "g", p, rc.weights(p, seed=4), kind)
    for path in (tmp_path / "g", tmp_path / "g" / "model.gguf"):
        report = check(path, CheckOptions())
        assert [str(fault) for row in report.rows for fault in row.faults] == []
        assert report.text()
    assert cli.main(["manifest", str(tmp_path / "g" / "model.gguf"), "--out", str(tmp_path / "m.json")]) == 0
    assert cli.main(["verify", str(tmp_path / "g"), str(tmp_path / "m.json")]) == 0
