"""Pictures of stored benchmarks: time against context, memory against context, prompts, experts, images. Knows result
files, not how they came about.

python -m model_card.card.plots [--results model_card/results] [--out model_card/plots]
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


HERE = Path(__file__).resolve().parent.parent
OURS, THEIRS = "#d9480f", "#495057"  # the same side has the same color in all pictures
Rows = list[dict[str, Any]]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw what there are results for, as PNG files in `out`; the same results give the same bytes.

    Args:
        results: Folder of the benchmarks' JSON files; one that is missing leaves its pictures out.

    Raises:
        ValueError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('Plots need matplotlib: pip install ".[eval]".')
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, (source, plot) in PLOTS.items():
        file = results / f"{source}.json"
        if file.exists():
            drawn.append(_save(out / f"{name}.png", plot, list(json.loads(file.read_text("utf-8"))["rows"].values())))
    return drawn


def decode_time(axes: "Axes", rows: Rows) -> None:
    """Milliseconds of one layer's decode step against context."""
    _lines(axes, rows, "context", "ms", "context, tokens", "one layer, one token: milliseconds")


def decode_memory(axes: "Axes", rows: Rows) -> None:
    """Memory of one layer's decode step against context: the cache, and what a step takes besides."""
    rows = [row for row in rows if "context" in row]
    contexts = [row["context"] for row in rows]
    axes.plot(
        contexts, [row["cache_bytes"] / 2**20 for row in rows], "o--", color=OURS, label="latent cache of a layer"
    )
    _lines(axes, rows, "context", "peak_bytes", "context, tokens", "one layer: MiB besides weights and cache", 2**-20)


def prefill_time(axes: "Axes", rows: Rows) -> None:
    """Milliseconds of one layer against the length of the prompt."""
    _lines(axes, rows, "length", "ms", "prompt, tokens", "one layer, whole prompt: milliseconds")


def experts_time(axes: "Axes", rows: Rows) -> None:
    """Milliseconds of a layer's routed experts against tokens, by implementation."""
    names = {"ours": OURS, "eager": THEIRS, "grouped_mm": "#1971c2", "batched_mm": "#2f9e44"}
    for name, color in names.items():
        known = [row for row in rows if f"{name}_ms" in row]
        axes.plot([r["tokens"] for r in known], [r[f"{name}_ms"] for r in known], "o-", color=color, label=name)
    _label(axes, "tokens", "experts of one layer: milliseconds")


def vision_memory(axes: "Axes", rows: Rows) -> None:
    """Memory of the vision tower against the number of images of one size, the smallest measured."""
    side = min(row["side"] for row in rows)
    rows = [row for row in rows if row["side"] == side]
    _lines(axes, rows, "images", "peak_bytes", f"images of {side} pixels", "tower: MiB besides weights", 2**-20)


PLOTS: dict[str, tuple[str, Callable[[Any, Rows], None]]] = {
    "decode_time": ("decode", decode_time),
    "decode_memory": ("decode", decode_memory),
    "prefill_time": ("decode", prefill_time),
    "experts_time": ("experts", experts_time),
    "vision_memory": ("vision", vision_memory),
}


def _lines(axes: "Axes", rows: Rows, x: str, y: str, horizontal: str, vertical: str, unit: float = 1.0) -> None:
    """Both sides where they were measured."""
    for side, color in (("ours", OURS), ("transformers", THEIRS)):
        known = [row for row in rows if x in row and f"{side}_{y}" in row]
        values = [row[f"{side}_{y}"] * unit for row in known]
        axes.plot([row[x] for row in known], values, "o-", color=color, label=side)
    _label(axes, horizontal, vertical)


def _label(axes: "Axes", horizontal: str, vertical: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(alpha=0.3)
    axes.legend()


def _save(file: Path, plot: Callable[[Any, Rows], None], rows: Rows) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    plot(figure.subplots(), rows)
    figure.savefig(file, dpi=144, metadata={"Software": None})
    return file


def main() -> None:
    """Draw and name the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "plots")
    args = parser.parse_args()
    for file in draw(args.results, args.out):
        print(file)


if __name__ == "__main__":
    main()
