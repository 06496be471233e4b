"""Loading: seconds and memory of `from_pretrained` beside transformers reading the same weights in its own layout.

    python -m model_card.bench.load [--layers 2] [--experts 12] [--out model_card/results/load.json]

from the repository root. Makes a bfloat16 checkpoint of full-width layers (1.5 GB by default) in both layouts in a
temporary folder, with its files in the page cache. Each loading runs in a process of its own, in turns; "touched"
includes reading every weight once, for bfloat16 files are mapped and not read by loading alone. First checks that both
give the same logits.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from small4_conversion.convert import Options, convert
from small4_conversion.memory import peak_rss_bytes

from model_card.bench.decode import random_state
from model_card.bench.harness import child, options, read, report
from modeling_small4 import Small4Config, Small4ForCausalLM

SIDES = ("ours", "transformers")


def make(folder: Path, text: dict[str, Any], vision: dict[str, Any] | None) -> int:
    """Both layouts of one random checkpoint, `folder/ours` and `folder/transformers`; returns its bytes."""
    config = Small4Config(text_config={"vocab_size": 1024} | text, vision_config=vision, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = Small4ForCausalLM(config)
    model.load_state_dict(random_state(model, torch.bfloat16, torch.device("cpu")), assign=True)
    model.save_pretrained(folder / "ours")
    convert(folder / "ours", folder / "transformers", Options(to="transformers"))
    return sum(file.stat().st_size for file in (folder / "ours").glob("*.safetensors"))


def load(side: str, folder: Path, dtype: str) -> Small4ForCausalLM:
    """The model of one side."""
    if side == "ours":
        return Small4ForCausalLM.from_pretrained(folder / side, dtype=dtype).eval()
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder / side, dtype=dtype).eval()


@torch.inference_mode()
def one(side: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Load once in this process: seconds, peak memory, and the logits of a short prompt."""
    before, began = peak_rss_bytes(), time.perf_counter()
    model = load(side, folder, dtype)
    loaded = time.perf_counter() - began
    for parameter in model.parameters():
        parameter.view(-1)[::1024].sum()  # a number of each page of memory
    touched = time.perf_counter() - began
    found = {"loaded_s": loaded, "touched_s": touched, "peak_bytes": peak_rss_bytes() - before}
    return found | {"logits": model(torch.arange(20, 30)[None]).logits[0, -1, :64].tolist()}


def measured(args: argparse.Namespace, folder: Path, dtype: str) -> dict[str, Any]:
    """One row: medians, and ratios above 1 where ours is faster."""
    taken: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(args.runs):
        for side in SIDES if turn % 2 else SIDES[::-1]:
            taken[side].append(child("model_card.bench.load", "--one", side, folder, dtype, "--threads", args.threads))
    ours, theirs = (torch.tensor(taken[side][0]["logits"]) for side in SIDES)
    if (ours - theirs).abs().max() > 0.05 * theirs.abs().max():
        raise SystemExit(f"Logits of the two layouts differ in {dtype}.")
    row: dict[str, Any] = {}
    for key in ("loaded_s", "touched_s", "peak_bytes"):
        for side in SIDES:
            row[f"{side}_{key}"] = statistics.median(each[key] for each in taken[side])
    pairs = zip(*taken.values(), strict=True)
    return row | {"speedup_transformers": statistics.median(b["touched_s"] / a["touched_s"] for a, b in pairs)}


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__, runs=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=12)
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    args = read(parser)
    if args.one:
        print(json.dumps(one(args.one[0], Path(args.one[1]), args.one[2])))
        return
    with tempfile.TemporaryDirectory(prefix="small4-bench-") as work:
        text = {"num_hidden_layers": args.layers, "n_routed_experts": args.experts}
        size = make(Path(work), text, {"num_hidden_layers": 2})
        rows = {dtype: measured(args, Path(work), dtype) for dtype in ("auto", "float32")}
    columns = {f"{side}_touched_s": "8.2f" for side in SIDES} | {"speedup_transformers": "6.2f"}
    report(args, {"rows": rows, "bytes": size}, columns | {f"{side}_peak_bytes": "8.3g" for side in SIDES})


if __name__ == "__main__":
    main()
