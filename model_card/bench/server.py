"""What the server gains from prefixes that it keeps and from decoding requests together, seen by the openai client.

Run: `python -m model_card.bench.server`. `small4 serve` runs in a process of its own, with the demo, whose context is
set longer for the prompt. Answers of a server that keeps no prefixes are the ones that must come back.
"""

import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import APIConnectionError, OpenAI

from model_card.bench.harness import options, read, report
from modeling_small4 import Small4Processor, demo_checkpoint

SENTENCE = "The code of the lamp in room {} is {}. "


def parser() -> ArgumentParser:
    """The options."""
    out = options(__doc__ or "")
    out.add_argument("--prefix", type=int, default=13_000, help="tokens that two requests begin with")
    out.add_argument("--clients", type=int, default=4, help="requests at once")
    out.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    return out


def longer(folder: Path, positions: int) -> Path:
    """The demo with a context of `positions` tokens, in `folder`, in float32: where rounding decides nothing, answers
    after a kept prefix are those of a prompt that is read whole.
    """
    shutil.copytree(demo_checkpoint(), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    config["text_config"]["max_position_embeddings"] = positions
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@contextmanager
def served(folder: Path, gigabytes: float) -> Iterator[OpenAI]:
    """A client of a server that keeps at most `gigabytes` of prefixes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "modeling_small4", "serve", "--model", folder, "--served-name", "demo"]
    process = subprocess.Popen([*map(str, command), "--port", str(port), "--prefix-cache", str(gigabytes)])
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        while process.poll() is None:
            try:
                client.models.list()
                break
            except APIConnectionError:
                time.sleep(0.2)
        yield client
    finally:
        process.terminate()
        process.wait()


def long_text(tokens: int) -> str:
    """Sentences of at least as many tokens."""
    processor, text, room = Small4Processor.from_pretrained(demo_checkpoint()), "", 100
    while len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) < tokens:
        text += "".join(SENTENCE.format(room + i, 1000 + 7 * (room + i)) for i in range(20))
        room += 20
    return text


def answer(client: OpenAI, text: str, tokens: int) -> Any:
    """An answer of exactly `tokens` tokens: the end of the answer is forbidden."""
    return client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": text}], temperature=0, max_tokens=tokens,
        reasoning_effort="none", logit_bias={"2": -100},
    )  # fmt: skip


def prefix_row(client: OpenAI, twin: OpenAI, tokens: int, runs: int) -> dict[str, Any]:
    """Milliseconds until the first token of a prompt that is new, and of one whose beginning was read before, after a
    first round that warms up.
    """
    rounds: list[tuple[float, float]] = []
    for run in range(runs + 1):
        text, times = f"{run}. " + long_text(tokens), list[float]()
        for question in ("Which code has room 101?", "What is the code of the lamp in room 102, then?"):
            began = time.perf_counter()
            said = answer(client, text + question, 24 if run == runs else 1)
            times.append((time.perf_counter() - began) * 1e3)
        if run < runs:
            rounds.append((times[0], times[1]))
    if said.choices[0].message.content != answer(twin, text + question, 24).choices[0].message.content:
        raise SystemExit("An answer after a kept prefix is another one; nothing is stored.")
    kept = rounds[1:] or rounds
    return {
        "ours_ms": statistics.median(again for _, again in kept), "alone_ms": statistics.median(new for new, _ in kept),
        "ratio": statistics.median(again / new for new, again in kept),
        "prompt_tokens": said.usage.prompt_tokens, "cached_tokens": said.usage.prompt_tokens_details.cached_tokens,
        "runs": len(kept),
    }  # fmt: skip


def together_row(client: OpenAI, clients: int, tokens: int, runs: int) -> dict[str, Any]:
    """Milliseconds of one answer alone, and of several at once."""
    alone, together = list[float](), list[float]()
    texts = [f"What is {3 + i} + {40 + i}?" for i in range(clients)]
    singles = [answer(client, text, tokens).choices[0].message.content for text in texts]
    with ThreadPoolExecutor(clients) as pool:
        for _ in range(runs + 1):
            began = time.perf_counter()
            answer(client, texts[0], tokens)
            middle = time.perf_counter()
            said = list(pool.map(lambda text: answer(client, text, tokens).choices[0].message.content, texts))
            alone.append(middle - began)
            together.append(time.perf_counter() - middle)
    same = sum(a == b for a, b in zip(singles, said, strict=True))
    return {
        "ours_ms": statistics.median(together[1:]) * 1e3,
        "alone_ms": statistics.median(alone[1:]) * 1e3,
        "ratio": statistics.median(b / a for a, b in zip(alone[1:], together[1:], strict=True)),
        "same_answers": same, "clients": clients, "tokens": tokens, "runs": runs,
    }  # fmt: skip


def main() -> None:
    """Measure, print and store."""
    args = read(parser())
    with tempfile.TemporaryDirectory() as place:
        folder = longer(Path(place) / "demo", 2 * args.prefix + 4096)
        with served(folder, 2.0) as client, served(folder, 0.0) as twin:
            rows = {
                "prefix": prefix_row(client, twin, args.prefix, args.runs),
                "together": together_row(client, args.clients, args.tokens, args.runs),
            }
    form = {"ours_ms": "10.1f", "alone_ms": "10.1f", "ratio": "6.2f"}
    report(args, {"rows": rows}, form)


if __name__ == "__main__":
    main()
