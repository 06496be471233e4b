"""Pictures of stored benchmarks: all of them from whole results, fewer from fewer, the same bytes each time."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_card.card.plots import PLOTS, draw

pytest.importorskip("matplotlib")

BOTH = {"ours_ms": 1.5, "transformers_ms": 20.0, "ours_peak_bytes": 2e6, "transformers_peak_bytes": 3e7}
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "decode": {
        "decode at 64": {"context": 64, "cache_bytes": 40960} | BOTH,
        "decode at 4096": {"context": 4096, "cache_bytes": 2621440, "ours_ms": 2.0},
        "prefill of 1024": {"length": 1024} | BOTH,
    },
    "experts": {
        "1 tokens": {"tokens": 1, "ours_ms": 1.0, "eager_ms": 2.0, "grouped_mm_ms": 1.5, "batched_mm_ms": 9.0},
        "32 tokens": {"tokens": 32, "ours_ms": 3.0, "eager_ms": 7.0, "grouped_mm_ms": 6.0},
    },
    "vision": {
        "1 x 392 px": {"images": 1, "side": 392} | BOTH,
        "8 x 1540 px": {"images": 8, "side": 1540, "ours_ms": 5.0},
    },
}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps({"rows": ROWS[name]}))


def test_every_plot_is_drawn_and_the_same_again(tmp_path: Path) -> None:
    write(tmp_path, *ROWS)
    first, second = draw(tmp_path, tmp_path / "a"), draw(tmp_path, tmp_path / "b")
    assert [file.stem for file in first] == list(PLOTS)
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_missing_results_leave_plots_out(tmp_path: Path) -> None:
    write(tmp_path, "experts")
    assert [file.name for file in draw(tmp_path, tmp_path / "out")] == ["experts_time.png"]
