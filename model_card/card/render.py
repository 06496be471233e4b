"""Renders the model card: `card.md` with the stored results put in, its metadata, and its pictures, as a Hub
repository's README.

`small4 card` runs it. What the template may use is in `page`; a number that is not stored is an error that says which.
Must not know: how anything is measured.
"""

import tempfile
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from model_card.card import context, figures, plots
from model_card.card.results import MissingNumber, Results

HERE = Path(__file__).resolve().parent.parent
TEMPLATE = HERE / "card.md"
NAME = "modeling-small4-demo"
PICTURES = "figures"


def render(out: Path, results: Results | None = None) -> list[Path]:
    """Writes README.md and its pictures into `out`, which is made. A card that an earlier run wrote there is replaced.

    Returns:
        What was written, README.md first.

    Raises:
        MissingNumber: Something that the card states is not stored, or was measured on other weights than those
            shipped.
        ValueError: matplotlib is missing, or files of these names are there that are no card's, or links.
    """
    results = results or Results()
    text = str(ModelCard(f"---\n{metadata(results).to_yaml()}\n---\n\n{body(results)}")).rstrip() + "\n"
    shown = context.pictures(text)
    _check_own(out, [out / "README.md", *(out / PICTURES / name for name in shown)])  # before the pictures are drawn
    with tempfile.TemporaryDirectory() as folder:  # nothing is written where something is missing
        pictures = [*figures.draw(results, Path(folder)), *benchmarks(results, Path(folder))]
        unknown = [name for name in shown if name not in {picture.name for picture in pictures}]
        if unknown:
            raise MissingNumber(f"The card shows {', '.join(unknown)}, which no result draws.")
        files = {out / "README.md": text.encode()}
        files |= {out / PICTURES / picture.name: picture.read_bytes() for picture in pictures}
    _check_own(out, list(files))
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        _put(file, data)
    return list(files)


def _check_own(out: Path, files: list[Path]) -> None:
    """Refuse to replace what is no card of ours, or to write through a link."""
    readme = files[0]
    for path in (out, out / PICTURES, *files):
        if path.is_symlink():
            raise ValueError(f"{path}: is a link, which is not followed; choose another folder with --out.")
    head = readme.read_text("utf-8", errors="replace").split("\n---\n")[0] if readme.is_file() else ""
    if head.startswith("---\n") and f"name: {NAME}" in head:
        return
    if taken := next((file for file in files if file.exists()), None):
        raise ValueError(f"{taken}: is not of a card that small4 card wrote; choose another folder with --out.")


def _put(file: Path, data: bytes) -> None:
    """Write a new file in the place of one of ours; "x" follows no link."""
    file.unlink(missing_ok=True)
    with file.open("xb") as stream:
        stream.write(data)


def benchmarks(results: Results, out: Path) -> list[Path]:
    """The pictures of benchmarks."""
    try:
        return plots.draw(results.folder, out)
    except KeyError as error:
        raise MissingNumber(
            f"A benchmark's picture needs {error}, which is not stored in {results.folder.name}/."
        ) from error


def body(results: Results, template: str | None = None) -> str:
    """The card without its metadata."""
    loader = jinja2.DictLoader({TEMPLATE.name: template or TEMPLATE.read_text("utf-8")})
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= context.FILTERS
    try:
        return environment.get_template(TEMPLATE.name).render(context.names(results))
    except jinja2.UndefinedError as error:
        raise MissingNumber(f"card.md: {error}") from error


def metadata(results: Results) -> ModelCardData:
    """What the Hub shows and searches: license, library, task, and `model-index` with the held-out accuracies."""
    scores = results["demo_eval"]["tasks"]
    found = [_score(task, mode, scores[task][mode]) for task in scores for mode in scores[task]]
    return ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["small4", "mistral", "mixture-of-experts", "reasoning", "tool-calling", "demo"],
        model_name=NAME,
        eval_results=found,
    )


def _score(task: str, mode: str, score: Any) -> EvalResult:
    return EvalResult(
        task_type="image-text-to-text" if task == "picture" else "text-generation",
        dataset_type="small4-demo",
        dataset_name=f"Small 4 demo, held out: {task}",
        dataset_config=task,
        dataset_split="held_out",
        metric_type="accuracy",
        metric_name=f"accuracy, reasoning mode {mode}",
        metric_value=score["accuracy"],
        metric_args={"reasoning_mode": mode, "rows": score["rows"]},
    )
