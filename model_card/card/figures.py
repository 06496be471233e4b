"""The card's pictures of the demo checkpoint, from stored results: accuracy, thinking budgets, retrieval, use of
experts.

The same results give the same bytes. Pictures of benchmarks are in `plots`. Must not know: the template, the model.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_card.card.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"none": "#9aa5b1", "high": "#d9480f"}  # of the reasoning modes
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}  # a legend right of its axes
DPI = 144


def draw(results: Results, out: Path) -> list[Path]:
    """Writes every picture into `out` and returns their paths.

    Raises:
        MissingNumber: A number that a picture needs is not stored.
        ValueError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('The card\'s pictures need matplotlib: pip install ".[eval]".')
    found = results["demo_eval"]
    tasks = list(found["tasks"])
    return [
        _saved(out / "accuracy.png", accuracy, tasks, found["tasks"]),
        _saved(out / "thinking_budget.png", thinking_budget, found["budgets"]),
        _saved(out / "retrieval.png", retrieval, found["retrieval"]),
        _saved(out / "expert_use.png", expert_use, tasks, found["expert_use"]),
    ]


def accuracy(figure: "Figure", names: list[str], tasks: Any) -> None:
    """Bars by task and mode, with 95 % intervals."""
    axes = figure.subplots()
    for place, (mode, color) in enumerate(COLORS.items()):
        scores = [tasks[name][mode] for name in names]
        at = [i + 0.4 * (place - 0.5) for i in range(len(names))]
        axes.bar(at, [100 * score["accuracy"] for score in scores], 0.38, color=color, label=mode)
        axes.errorbar(at, *_with_errors(scores), fmt="none", ecolor="black", capsize=2, linewidth=1)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    _percent(axes)
    axes.legend(title="reasoning mode", **BESIDE)


def thinking_budget(figure: "Figure", budgets: Any) -> None:
    """Accuracy against `max_thinking_tokens`, one line for each task; the last point has no limit."""
    axes = figure.subplots()
    limits: list[str] = []
    for name in budgets:
        limits = list(budgets[name])
        axes.errorbar(
            range(len(limits)), *_with_errors([budgets[name][limit] for limit in limits]),
            marker="o", markersize=4, capsize=2, linewidth=1.5, label=name.replace("_", " "),
        )  # fmt: skip
    axes.set_xticks(range(len(limits)), ["no limit" if limit == "none" else limit for limit in limits])
    axes.set_xlabel("max_thinking_tokens")
    _percent(axes)
    axes.legend(**BESIDE)


def retrieval(figure: "Figure", lengths: Any) -> None:
    """Accuracy of retrieval against the length of the text, by mode."""
    axes, names = figure.subplots(), list(lengths)
    for mode, color in COLORS.items():
        scores = [lengths[name][mode] for name in names]
        axes.errorbar(
            range(len(names)), *_with_errors(scores), color=color, marker="o", markersize=4, capsize=2, label=mode
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("tokens of text")
    _percent(axes)
    axes.legend(title="reasoning mode", **BESIDE)


def expert_use(figure: "Figure", names: list[str], use: Any) -> None:
    """A heatmap for each layer: experts across, tasks down, shade the share of what the router chose."""
    layers, experts = len(use[names[0]]), len(use[names[0]][0])
    shares = [[[use[name][layer][e] for e in range(experts)] for name in names] for layer in range(layers)]
    most = max(share for layer in shares for row in layer for share in row)
    panels = figure.subplots(1, layers, sharey=True, squeeze=False)[0]
    for layer, panel in enumerate(panels):
        image = panel.imshow(shares[layer], cmap="viridis", vmin=0, vmax=most, aspect="auto", interpolation="nearest")
        panel.set_title(f"layer {layer}", fontsize=9)
        panel.set_xticks(range(experts))
        panel.set_xlabel("expert")
    panels[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    figure.colorbar(image, ax=list(panels), label=f"share of choices (equal: {1 / experts:.3f})")


def _with_errors(scores: list[Any]) -> tuple[list[float], list[list[float]]]:
    """Percentages, and how far their intervals reach down and up."""
    shares = [100 * score["accuracy"] for score in scores]
    bounds = [[100 * score["interval_95"][side] for score in scores] for side in (0, 1)]
    down = [max(0.0, share - low) for share, low in zip(shares, bounds[0], strict=True)]
    return shares, [down, [max(0.0, high - share) for share, high in zip(shares, bounds[1], strict=True)]]


def _percent(axes: "Axes") -> None:
    axes.set_ylim(0, 105)
    axes.set_ylabel("held-out accuracy, %")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _saved(file: Path, drawing: Callable[..., None], *parts: Any) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    drawing(figure, *parts)
    figure.savefig(file, dpi=DPI, metadata={"Software": None})
    return file
