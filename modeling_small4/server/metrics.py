"""`/metrics`: what the engine counts, as Prometheus reads it. Knows nothing of requests."""

from ..drafts_loading import paces
from .engine import Engine


def metrics_text(engine: Engine) -> str:
    """All metrics, one per line, each with its type and meaning."""
    counts, prefixes = engine.counts, engine.prefixes
    used = paces(engine.decoder.model).values()
    drafted, accepted = sum(pace.drafted for pace in used), sum(pace.accepted for pace in used)
    lines = []
    for name, kind, about, value in (
        ("queue", "gauge", "Requests that wait.", engine.queued),
        ("running", "gauge", "Answers in the making.", engine.running),
        (
            "tokens_per_second",
            "gauge",
            "Generated tokens per second, over the last ten seconds.",
            f"{counts.rate():.1f}",
        ),
        ("prompt_tokens_total", "counter", "Tokens of prompts.", counts.prompt_tokens),
        (
            "cached_tokens_total",
            "counter",
            "Prompt tokens that were taken from the prefix cache.",
            counts.cached_tokens,
        ),
        ("generated_tokens_total", "counter", "Generated tokens.", counts.generated_tokens),
        ("drafted_tokens_total", "counter", "Tokens that a draft has drafted.", drafted),
        ("accepted_tokens_total", "counter", "Drafted tokens that the model chose too.", accepted),
        ("cache_entries", "gauge", "Prefixes in the prefix cache.", len(prefixes)),
        ("cache_bytes", "gauge", "Bytes in the prefix cache.", prefixes.nbytes),
    ):
        lines += [f"# HELP small4_{name} {about}", f"# TYPE small4_{name} {kind}", f"small4_{name} {value}"]
    lines += ["# HELP small4_answers_total Answers by the way they ended.", "# TYPE small4_answers_total counter"]
    ends = ("stop", "length", "tool_calls", "cancelled", "failed")
    lines += [f'small4_answers_total{{end="{end}"}} {counts.finished.get(end, 0)}' for end in ends]
    return "\n".join(lines) + "\n"
