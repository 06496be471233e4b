"""The model card: it renders from the stored results, says every number that is missing, and shows only code that was
run.
"""

import io
import json
import shutil
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from model_card.card import context, figures
from model_card.card.measures import MEASURES
from model_card.card.render import HERE, TEMPLATE, body, render
from model_card.card.results import RESULTS, MissingNumber, Results
from model_card.demo_recipe.tasks.data import TASKS
from model_card.evals.usage import run
from modeling_small4 import Small4Config
from modeling_small4.commands import card as card_command
from modeling_small4.commands import cli
from modeling_small4.planner.layout import plan
from modeling_small4.planner.speed import speed

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MISSING = [name for name in MEASURES if not (RESULTS / f"{name}.json").exists()]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not measured yet: {', '.join(MISSING)}")
torch.set_num_threads(1)
TEXT = TEMPLATE.read_text("utf-8")
WRONG = 0.123456


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command prints about a card that it renders from what is stored."""
    with redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["card", "--out", str(tmp_path_factory.mktemp("card")), "--json"]) == 0
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def card(said: dict[str, Any]) -> Path:
    """The folder of that card."""
    return Path(said["card"]).parent


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A copy of the results, to be damaged."""
    return Path(shutil.copytree(RESULTS, tmp_path / "model_card" / "results"))


def edit(folder: Path, name: str, path: list[Any], value: Any) -> None:
    """Set one value of a result file; None deletes it."""
    file = folder / f"{name}.json"
    content = json.loads(file.read_text("utf-8"))
    *parents, last = path
    part = content
    for key in parents:
        part = part[key]
    if value is None:
        del part[last]
    else:
        part[last] = value
    file.write_text(json.dumps(content), encoding="utf-8")


# -- what is rendered
# ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_readme_and_the_pictures_it_shows(card: Path) -> None:
    text = (card / "README.md").read_text("utf-8")
    assert {file.name for file in card.iterdir()} == {"README.md", "figures"}
    assert set(context.pictures(text)) == {file.name for file in (card / "figures").iterdir()}
    assert all(f"\n| {task} | " in text for task in TASKS)
    assert not [mark for mark in ("{{", "{%", "Undefined", "None %", "nan") if mark in text]
    for file in (card / "figures").iterdir():
        assert file.read_bytes().startswith(b"\x89PNG") or file.suffix == ".svg"


def test_the_metadata_is_the_hubs(card: Path) -> None:
    read = ModelCard.load(card / "README.md")
    assert (read.data.license, read.data.library_name, read.data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "image-text-to-text",
    )
    scores = json.loads((RESULTS / "demo_eval.json").read_text("utf-8"))["tasks"]
    found = {
        (one.dataset_config, one.metric_args["reasoning_mode"]): one.metric_value for one in read.data.eval_results
    }
    assert found == {(task, mode): score["accuracy"] for task, modes in scores.items() for mode, score in modes.items()}
    index = metadata_load(card / "README.md")["model-index"]
    assert eval_results_to_model_index(*model_index_to_eval_results(index)) == index


def test_sizes_are_the_planners_and_claims_are_marked_as_quoted(card: Path) -> None:
    text = (card / "README.md").read_text("utf-8")
    assert "119,401,298,944" in text
    assert "23,040 B" in text
    assert context.hardware() in text
    section = text.split("## The 119 B release")[1].split("\n## ")[0]
    assert "Quoted, not measured here" in section
    claims = json.loads((HERE / "release.json").read_text("utf-8"))
    assert all(f'"{claim["quoted"]}" | [{claim["source"]}](https://' in section for claim in claims["claims"])


def test_each_line_of_the_three_origins_has_one(card: Path) -> None:
    section = (card / "README.md").read_text("utf-8").split("## Measured, foretold, reported")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert all(sorted(line[1:]).count("-") == 2 for line in lines), lines
    measured, foretold, reported = ([line for line in lines if line[place] != "-"] for place in (1, 2, 3))
    assert len(measured) == 4
    assert len(foretold) == len(context.MACHINES)
    assert len(reported) == 4
    estimate = speed(Small4Config(), plan(Small4Config(), "1xH100", "nvfp4", context=8192))
    assert estimate
    assert f"{float(f'{estimate.tokens_per_second:.2g}'):.0f}" == foretold[-1][2]
    assert all(line[3].startswith('"') and "](https://" in line[3] for line in reported)


def test_the_table_of_origins_names_the_instruction_sets(stored: Path) -> None:
    edit(stored, "decode", ["machine", "instructions"], ["avx2", "avx512_vnni", "amx_bf16"])
    name = json.loads((stored / "decode.json").read_text("utf-8"))["machine"]["processor"]
    assert f"| {name}, avx2, amx_bf16, 2 cores |" in body(Results(stored))


def test_labels_of_the_accuracy_plot_do_not_overlap() -> None:
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    tasks = json.loads((RESULTS / "demo_eval.json").read_text("utf-8"))["tasks"]
    figures.accuracy(figure, list(tasks), tasks)
    canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_every_file_that_is_used_is_traced_to_its_command(card: Path) -> None:
    text = (card / "README.md").read_text("utf-8")
    rows = text.split("## Where the numbers come from")[1]
    used = {name for name in MEASURES if f"results.{name}" in TEXT} | {"usage"}
    for name in used:
        content = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        assert f"| {name}.json | `{content['command']}` | {content['commit'][:12]}" in rows


def test_rendering_again_gives_the_same_bytes(card: Path, tmp_path: Path) -> None:
    for file in render(tmp_path):
        assert file.read_bytes() == (card / file.relative_to(tmp_path)).read_bytes(), file


def test_only_a_card_is_replaced(card: Path, tmp_path: Path) -> None:
    def shown() -> list[Any]:
        return sorted((str(p), p.is_dir() or p.is_symlink() or p.read_bytes()) for p in tmp_path.rglob("*"))

    mine = {name: tmp_path / name for name in ("readme", "picture", "link", "linked", "within")}
    for folder in mine.values():
        (folder / "figures").mkdir(parents=True)
    picture = next((card / "figures").iterdir()).name
    (mine["readme"] / "README.md").write_text("# My project\n\nname: modeling-small4-demo\n")
    (mine["picture"] / "figures" / picture).write_text("my picture")
    (mine["link"] / "README.md").symlink_to(tmp_path / "nowhere")
    shutil.copy(card / "README.md", mine["linked"])
    (mine["linked"] / "figures" / picture).symlink_to(mine["picture"] / "figures" / picture)
    (tmp_path / "elsewhere").mkdir()
    (mine["within"] / "figures").rmdir()
    (mine["within"] / "figures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    before = shown()
    for folder in (*mine.values(), tmp_path / "out"):
        with pytest.raises(ValueError, match="choose another folder"):
            render(folder)
        assert shown() == before
    (card / "figures" / "mine.png").write_text("mine")
    (card / "notes").write_text("mine")
    render(card)
    assert (card / "figures" / "mine.png").read_text() == (card / "notes").read_text() == "mine"


@pytest.mark.slow
def test_the_code_it_shows_prints_what_it_says(card: Path) -> None:
    text = (card / "README.md").read_text("utf-8")
    shown = context.examples(text)
    assert shown == context.examples(TEXT)
    for example in run(shown):
        after = text.split(example["code"], 1)[1]
        assert after.startswith(f"```\n\n```text\n{example['printed'].rstrip()}\n```")


# -- numbers that change or are missing
# ------------------------------------------------------------------------------------

NUMBERS = [
    ("demo_eval", ["tasks", "arithmetic", "high", "accuracy"]),
    ("demo_eval", ["tasks", "picture", "none", "interval_95"]),
    ("demo_eval", ["tasks", "puzzle", "high", "thinking_tokens"]),
    ("demo_eval", ["tasks", "talk", "none", "tokens_per_second"]),
    ("demo_eval", ["tool_calls", "high", "valid", "accuracy"]),
    ("demo_eval", ["retrieval", "4096", "high", "accuracy"]),
    ("demo_eval", ["budgets", "program", "16", "accuracy"]),
    ("demo_eval", ["forms", "JSON under a grammar", "high", "accuracy"]),
    ("demo_eval", ["machine", "cores"]),
    ("paraphrases", ["tasks", "puzzle", "high", "accuracy"]),
    ("paraphrases", ["kinds", "retrieval", "list", "none", "interval_95"]),
    ("paraphrases", ["all", "none", "accuracy"]),
    ("lm_eval", ["modes", "high", "exact_match"]),
    ("lm_eval", ["versions", "torch"]),
    ("decode", ["rows", "decode at 16384", "speedup_transformers"]),
    ("decode", ["rows", "decode at 262144", "ours_ms"]),
    ("decode", ["rows", "prefill of 1024", "transformers_peak_bytes"]),
    ("experts", ["rows", "32 tokens", "batched_mm_ms"]),
    ("predecessor", ["rows", "decoding, batch 16", "throughput_to_transformers"]),
    ("long_prompt", ["rows", "262144 tokens", "of_sum"]),
    ("cache", ["rows", "8 bits", "bytes_per_token"]),
    ("cache", ["rows", "picture, high", "same_answers"]),
    ("vision", ["rows", "8 x 1540 px", "ours_ms"]),
    ("load", ["rows", "float32", "ours_touched_s"]),
    ("train_step", ["rows", "step", "ours_tokens_per_s"]),
    ("finetune", ["lora", "after", "lunar/high", "accuracy"]),
    ("lora_held", ["rows", "nvfp4", "before", "lunar/high", "accuracy"]),
    ("lora_held", ["rows", "int4", "after", "lunar/high", "accuracy"]),
    ("lora_step", ["rows", "nvfp4", "speedup_transformers"]),
    ("lora_step", ["rows", "int4", "ours_peak_bytes"]),
    ("loss_chunks", ["rows", "64 tokens", "peak_bytes"]),
    ("balance", ["without", "largest_load"]),
    ("preprocessing", ["images", "64x64", "ratio"]),
    ("conversion", ["ways", "convert", "against_copy"]),
    ("weight_only", ["int8", "bytes"]),
]


@pytest.fixture(scope="module")
def unchanged() -> str:
    return body(Results())


@pytest.mark.parametrize(("name", "path"), NUMBERS, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_a_number_that_changes_changes_the_card_and_a_missing_one_is_named(
    stored: Path, unchanged: str, name: str, path: list[str]
) -> None:
    edit(stored, name, path, [WRONG, WRONG] if path[-1] == "interval_95" else WRONG)
    assert body(Results(stored)) != unchanged
    edit(stored, name, path, None)
    with pytest.raises(MissingNumber) as error:
        body(Results(stored))
    assert f"model_card/results/{name}.json: {' > '.join(path)}" in str(error.value)
    assert MEASURES[name] in str(error.value)


@pytest.mark.parametrize("name", ["demo_eval", "paraphrases"])
@pytest.mark.parametrize("task", ["arithmetic", "tools"])
def test_a_task_or_kind_that_is_missing_is_an_error(stored: Path, task: str, name: str) -> None:
    kinds = json.loads((stored / f"{name}.json").read_text("utf-8"))["kinds"][task]
    edit(stored, name, ["kinds", task, next(iter(kinds))], None)
    with pytest.raises(MissingNumber, match=f"kind of problem is missing in results/{name}.json"):
        body(Results(stored))
    edit(stored, name, ["tasks", task], None)
    with pytest.raises(MissingNumber, match=f"tasks > {task}"):
        body(Results(stored))


def test_a_missing_file_names_the_command_that_makes_it_and_writes_nothing(stored: Path, tmp_path: Path) -> None:
    (stored / "lm_eval.json").unlink()
    with pytest.raises(MissingNumber, match=r"python -m model_card\.evals\.lm_harness"):
        render(tmp_path / "out", Results(stored))
    assert not (tmp_path / "out").exists()
    (stored / "lm_eval.json").write_text("{")
    with pytest.raises(MissingNumber, match="not JSON"):
        render(tmp_path / "out", Results(stored))


def test_a_picture_without_its_numbers_is_an_error(stored: Path, tmp_path: Path) -> None:
    edit(stored, "demo_eval", ["expert_use", "tools"], None)
    with pytest.raises(MissingNumber, match="expert_use > tools"):
        render(tmp_path / "out", Results(stored))
    assert not (tmp_path / "out").exists()


def test_a_benchmarks_picture_without_its_numbers_is_an_error(stored: Path, tmp_path: Path) -> None:
    edit(stored, "decode", ["rows", "decode at 64", "cache_bytes"], None)
    with pytest.raises(MissingNumber, match="'cache_bytes'"):
        render(tmp_path / "out", Results(stored))
    assert not (tmp_path / "out").exists()


def test_a_picture_shows_its_numbers(stored: Path, tmp_path: Path) -> None:
    edit(stored, "demo_eval", ["budgets", "arithmetic", "0", "accuracy"], WRONG)
    changed = {file.name for file in figures.draw(Results(stored), tmp_path)}
    other = tmp_path / "other"
    other.mkdir()
    for file in figures.draw(Results(), other):
        assert (file.read_bytes() != (tmp_path / file.name).read_bytes()) == (file.name == "thinking_budget.png")
    assert "thinking_budget.png" in changed


def test_results_of_other_weights_and_of_other_code_are_refused(stored: Path) -> None:
    edit(stored, "demo_eval", ["weights_sha256"], "0" * 64)
    with pytest.raises(MissingNumber, match="other weights"):
        body(Results(stored))
    shutil.copy(RESULTS / "demo_eval.json", stored)
    edit(stored, "usage", ["examples", 0, "code"], "print(1)\n")
    with pytest.raises(MissingNumber, match="changed after it was run"):
        body(Results(stored))


def test_a_name_that_the_template_made_up_is_an_error() -> None:
    with pytest.raises(MissingNumber, match="nonsense"):
        body(Results(), "{{ nonsense }}")
    with pytest.raises(MissingNumber, match="which is no single number"):
        body(Results(), "{{ results.demo_eval.tasks }}")


# -- the command -------------------------------------------------------------------------------------------------------


def test_json_names_what_was_written(said: dict[str, Any], card: Path) -> None:
    assert said["card"] == str(card / "README.md") == said["files"][0]
    assert all(Path(file).is_file() for file in said["files"])


def test_outside_a_clone_it_says_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        card_command, "__file__", str(tmp_path / "site-packages" / "modeling_small4" / "commands" / "card.py")
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["card"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "inside a clone" in err
    assert err.count("\n") == 1
    monkeypatch.chdir(HERE.parent)
    assert card_command.clone() == HERE.parent


def test_measuring_runs_the_commands_in_order(tmp_path: Path) -> None:
    measures = {"one": 'python -c \'open("one", "w")\'', "two": 'python -c \'open("two", "w")\''}
    assert card_command.chosen(["two", "one", "two"], measures) == ["two", "one"]
    assert card_command.chosen(["all"], measures) == ["one", "two"]
    elsewhere = measures | {"engines": "python -m engines VENV/bin/vllm"}
    assert card_command.chosen(["all"], elsewhere) == ["one", "two"]
    with pytest.raises(ValueError, match="engines needs other programs"):
        card_command.chosen(["engines"], elsewhere)
    with pytest.raises(ValueError, match="three: no such result; known are all, one, two"):
        card_command.chosen(["three"], measures)
    card_command.measure("one", measures["one"], tmp_path)
    assert (tmp_path / "one").is_file()
    with pytest.raises(RuntimeError, match="status 3"):
        card_command.measure("two", "python -c 'raise SystemExit(3)'", tmp_path)


def test_measures_are_modules_that_exist() -> None:
    for name, command in MEASURES.items():
        program, flag, module, *rest = command.split()
        assert (program, flag) == ("python", "-m")
        place = HERE.parent / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), command
        assert module.startswith("model_card.evals.") or f"model_card/results/{name}.json" in rest or name == "engines"


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (context.percent, 0.98251, "98.3 %"), (context.whole, 119401298944, "119,401,298,944"),
        (context.billions, 119401298944, "119.40 B"),
        (context.billions, 1743104, "1.7 M"), (context.describe_bytes, 2.388e11, "238.8 GB"),
        (context.describe_bytes, 512, "512 bytes"),
        (context.figures, 0.00012345, "0.000123"), (context.figures, 1234.5, "1,230"), (context.figures, 18.8, "18.8"),
        (context.figures, 0.0, "0"),
        (context.commit, "a" * 40 + "-dirty", "a" * 12 + " and changes"),
    ],
)  # fmt: skip
def test_formats(form: Any, value: Any, text: str) -> None:
    assert form(value) == text


def test_a_benchmarks_table_shows_what_it_is_told_and_no_more() -> None:
    rows = {"at 64": {"ours_ms": 2.0, "speedup_x": 1.5, "peak_bytes": 3e9}, "at 4k": {"ours_ms": 8.25}}
    columns = {"ms": "ours_ms", "speed-up": "speedup_x", "peak": "peak_bytes"}
    absent = ["at 4k: speedup_x", "at 4k: peak_bytes"]
    lines = context.grid(rows, {"at 64": "64", "at 4k": "4k"}, columns, absent).split("\n")
    assert lines[2:] == ["| 64 | 2 | 1.5x | 3.0 GB |", "| 4k | 8.25 | - | - |"]
    with pytest.raises(KeyError):
        context.grid(rows, {"at 4k": "4k"}, columns)
