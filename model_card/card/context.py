"""What the card's template may use: stored results, facts computed while rendering, outputs of the code it shows, and
formats.

Must not know: files of the card, the Hub.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from model_card.card.measures import MEASURES
from model_card.card.results import MissingNumber, Results, Stored, sha256
from modeling_small4 import Small4Config, demo_checkpoint
from modeling_small4.commands.plan import table
from modeling_small4.commands.terminal import describe_bytes
from modeling_small4.planner.layout import plan
from modeling_small4.planner.sizes import cache_bytes, tensors, weight_bytes
from modeling_small4.planner.speed import speed

HERE = Path(__file__).resolve().parent.parent
# Results that hold for the shipped weights alone.
OF_THE_WEIGHTS = ("demo_eval", "paraphrases", "lm_eval", "usage", "weight_only")
MACHINES = (  # as `small4 plan --devices` takes them, and in words
    ("64GB-ram", "64 GB of memory, no GPU"), ("RTX4090+64GB-ram", "RTX 4090 and 64 GB of memory"),
    ("RTX5090+64GB-ram", "RTX 5090 and 64 GB of memory"), ("DGX-SPARK", "DGX Spark"),
    ("STRIX-HALO", "Strix Halo, 128 GB"), ("1xH100", "one H100"),
)  # fmt: skip
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def names(results: Results) -> dict[str, Any]:
    """The template's variables and functions."""
    used = Used(results)
    return {
        "results": used,
        "full": facts(Small4Config()),
        "demo": facts(Small4Config.from_pretrained(demo_checkpoint())),
        "hardware": hardware(),
        "machines": MACHINES,
        "foretold": foretold,
        "release": json.loads((HERE / "release.json").read_text("utf-8")),
        "printed": lambda number: printed(used, number),
        "grid": grid,
    }


class Used:
    """The results, each checked when it is first asked for; `names()` lists those that were."""

    def __init__(self, results: Results) -> None:
        self._results, self._asked = results, list[str]()

    def __getitem__(self, name: str) -> Stored:
        found = self._results[name]
        if name in OF_THE_WEIGHTS and found["weights_sha256"] != _weights():
            raise MissingNumber(
                f"results/{name}.json was measured on other weights than those shipped. Measure it: {MEASURES[name]}"
            )
        if name not in self._asked:
            self._asked.append(name)
        return found

    def origins(self) -> list[dict[str, Any]]:
        """Where the numbers so far come from: one row per file."""
        return [
            {"name": name, "from": self._results[name], "checksum": self._results.checksum(name)}
            for name in self._asked
        ]


@cache
def _weights() -> str:
    return sha256(demo_checkpoint() / "model.safetensors")


def facts(config: Small4Config) -> dict[str, Any]:
    """Sizes of a model, by arithmetic: parameters, those that work on a token, bytes of weights and of the cache per
    token.
    """
    text, parts = config.text_config, dict[str, int]()
    for tensor in tensors(config):
        parts[tensor.part] = parts.get(tensor.part, 0) + tensor.count
    seeing = parts.get("vision", 0) + parts.get("projector", 0)
    idle = parts["routed experts"] * (text.n_routed_experts - text.num_experts_per_tok) // text.n_routed_experts
    active = sum(parts.values()) - seeing - idle
    return {
        "config": text,
        "parts": parts,
        "parameters": sum(parts.values()),
        "active": active,
        "active_inside": active - parts["embedding"] - parts.get("head", 0),
        "weights": {name: sum(weight_bytes(config, name).values()) for name in ("bfloat16", "fp8", "nvfp4", "int4")},
        "cache_per_token": cache_bytes(config, 1),
        "expanded_per_token": 2
        * text.num_hidden_layers
        * text.num_attention_heads
        * (text.qk_head_dim + text.v_head_dim),
    }


@cache
def hardware() -> str:
    """What fits where, as Markdown, from the planner."""
    return table(Small4Config())


@cache
def foretold(devices: str) -> str:
    """Tokens per second that the planner estimates for NVFP4 weights at a context of 8,192 tokens."""
    config = Small4Config()
    estimate = speed(config, plan(config, devices, "nvfp4", context=8192))
    return figures(estimate.tokens_per_second, 2) if estimate else "does not fit"


def examples(template: str) -> list[str]:
    """The Python code that the card shows, block by block; all of them make one session."""
    return CODE.findall(template)


def printed(results: Any, number: int) -> str:
    """What the card's example `number`, counted from 1, printed when it was run.

    Raises:
        MissingNumber: It was not run, or is not the code that was run.
    """
    code, stored = examples((HERE / "card.md").read_text("utf-8"))[number - 1], results["usage"]["examples"][number - 1]
    if stored["code"] != code:
        raise MissingNumber(
            f"Example {number} of card.md was changed after it was run. Measure it: {MEASURES['usage']}"
        )
    return stored["printed"].rstrip("\n")


def pictures(text: str) -> list[str]:
    """Names of the picture files that a card shows."""
    return re.findall(r"!\[[^\]]*\]\(figures/([^)]+)\)", text)


def percent(share: float) -> str:
    """0.9825 -> 98.2 %"""
    return f"{100 * share:.1f} %"


def interval(score: Any) -> str:
    """98.0 % (96.1 to 99.0)"""
    low, high = (100 * bound for bound in score["interval_95"])
    return f"{percent(score['accuracy'])} ({low:.1f} to {high:.1f})"


def whole(number: float) -> str:
    """119401298944 -> 119,401,298,944"""
    return f"{round(number):,}"


def billions(number: float) -> str:
    """119401298944 -> 119.4 B, 1743104 -> 1.7 M"""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def figures(number: float, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent."""
    return f"{float(f'{number:.{digits}g}'):,.10f}".rstrip("0").rstrip(".")


def grid(rows: Any, names: dict[str, str], columns: dict[str, str], absent: Iterable[str] = ()) -> str:
    """Rows of a benchmark as a Markdown table.

    Args:
        names: the rows to show, each with its label.
        columns: headings and the keys under them; bytes, ratios and times are told apart by the key.
        absent: "row: key" of numbers that the benchmark leaves out, shown as a dash.
    """
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, label in names.items():
        cells = ("-" if f"{name}: {key}" in absent else amount(key, rows[name][key]) for key in columns.values())
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def amount(key: str, number: float) -> str:
    """A number as its key says: `..._bytes`, `speedup...` or `ratio` as a factor, else three digits."""
    if key.endswith("bytes"):
        return describe_bytes(number)
    factor = key.startswith("speedup") or key.endswith("ratio")
    return f"{figures(number)}x" if factor else figures(number)


def commit(name: str) -> str:
    """A commit's first digits, and whether files were changed since."""
    return name[:12] + (" and changes" if name.endswith("-dirty") else "")


def split_up(groups: Any, scores: Any, name: str = "demo_eval") -> Any:
    """The groups' keys and scores by mode, once it is sure that they are all that `scores` of result `name` counts.

    Raises:
        MissingNumber: A group is not stored.
    """
    if sum(groups[name]["high"]["rows"] for name in groups) != scores["high"]["rows"]:
        raise MissingNumber(f"A kind of problem is missing in results/{name}.json. Measure it: {MEASURES[name]}")
    return pairs(groups)


def machine(origin: Any) -> str:
    """Where a result was measured: processor, the instruction sets that decide its speed, cores."""
    found = origin["machine"]
    known = [name for name in found["instructions"] if name in DECISIVE] if "instructions" in found else []
    return ", ".join([found["processor"], *known, f"{found['cores']} cores"])


def pairs(part: Any) -> Iterable[tuple[Any, Any]]:
    """Keys and values of stored results."""
    return [(key, part[key]) for key in part]


DECISIVE = ("avx2", "avx512", "avx512_bf16", "amx_bf16", "neon", "bf16", "sve")
FILTERS: dict[str, Callable[..., Any]] = {
    "percent": percent, "interval": interval, "whole": whole, "billions": billions, "gigabytes": describe_bytes,
    "figures": figures,
    "commit": commit, "split_up": split_up, "pairs": pairs, "machine": machine,
}  # fmt: skip
