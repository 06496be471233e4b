"""Two engines of grammars on public JSON schemas: time of a token's mask, coverage, and wrong verdicts, with a
vocabulary of 131,072.

Run: `python -m model_card.bench.grammar FOLDER`, with the files of MaskBench (github.com/guidance-ai/jsonschemabench,
`maskbench/data`; each holds a schema and instances that fit it or do not). Needs `llguidance`, and `xgrammar` for the
other side.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from model_card.bench.harness import store


class LLGuidance:
    """llguidance, as `generate(grammar=...)` uses it."""

    name = "llguidance"

    def __init__(self, tokens: list[bytes], special: list[int], eos: int) -> None:
        import llguidance

        known = {"eos_token_id": eos, "bos_token_id": 1, "tokens": tokens, "special_token_ids": special}
        wrapper = type("Vocabulary", (), known | {"__call__": lambda self, data: [0]})
        self.library = llguidance
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(wrapper()))
        self.mask = torch.zeros(1, -(-len(tokens) // 32), dtype=torch.int32)

    def compile(self, schema: object) -> Any:
        grammar = self.library.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = self.library.LLMatcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def start(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def fill(self, matcher: Any) -> None:
        matcher.unsafe_compute_mask_ptr(self.mask.data_ptr(), self.mask.numel() * 4)

    def accept(self, matcher: Any, token: int) -> bool:
        return matcher.try_consume_tokens([token]) == 1

    def done(self, matcher: Any) -> bool:
        return matcher.is_accepting()


class XGrammar:
    """xgrammar, with any white space and additional properties, as the standard has it."""

    name = "xgrammar"

    def __init__(self, tokens: list[bytes], special: list[int], eos: int) -> None:
        import xgrammar

        self.library = xgrammar
        info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, stop_token_ids=[eos])
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.mask = xgrammar.allocate_token_bitmask(1, len(tokens))
        self.eos = eos

    def compile(self, schema: object) -> Any:
        return self.compiler.compile_json_schema(json.dumps(schema), strict_mode=False)

    def start(self, compiled: object) -> Any:
        return self.library.GrammarMatcher(compiled)

    def fill(self, matcher: Any) -> None:
        matcher.fill_next_token_bitmask(self.mask)

    def accept(self, matcher: Any, token: int) -> bool:
        return matcher.accept_token(token)

    def done(self, matcher: Any) -> bool:
        return matcher.accept_token(self.eos)


def measure(engine: Any, cases: Iterable[dict[str, Any]], encode: Any) -> dict[str, Any]:
    """Verdicts on all instances, and milliseconds of compiling and of each token's mask."""
    compiles: list[float] = []
    masks: list[float] = []
    counts = dict.fromkeys(("schemas", "refused", "valid_rejected", "invalid_accepted", "schemas_right"), 0)
    for case in cases:
        counts["schemas"] += 1
        began = time.perf_counter()
        try:
            compiled = engine.compile(case["schema"])
            engine.fill(engine.start(compiled))
        except Exception:
            counts["refused"] += 1
            continue
        compiles.append((time.perf_counter() - began) * 1e3)
        right = True
        for test in case["tests"]:
            accepted = _walk(engine, compiled, encode(json.dumps(test["data"], ensure_ascii=False)), masks)
            if accepted != test["valid"]:
                counts["valid_rejected" if test["valid"] else "invalid_accepted"] += 1
                right = False
        counts["schemas_right"] += right
    return counts | {"compile_ms": _quantiles(compiles), "mask_ms": _quantiles(masks), "masks": len(masks)}


def _walk(engine: Any, compiled: Any, ids: list[int], masks: list[float]) -> bool:
    matcher = engine.start(compiled)
    for token in ids:
        began = time.perf_counter()
        engine.fill(matcher)
        masks.append((time.perf_counter() - began) * 1e3)
        if not engine.accept(matcher, token):
            return False
    return engine.done(matcher)


def _quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=1000)
    return {"mean": statistics.fmean(values), "p50": cuts[499], "p75": cuts[749], "p99": cuts[989], "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--schemas", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="+", default=["llguidance", "xgrammar"])
    parser.add_argument("--largest", type=int, default=100_000, help="bytes of a case's file")
    parser.add_argument("--out", type=Path, help="where to store the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(path for path in args.folder.glob("*.json") if path.stat().st_size <= args.largest)
    paths = random.Random(args.seed).sample(paths, min(args.schemas, len(paths)))
    cases = [json.loads(path.read_text()) for path in paths]
    tekken = Tekkenizer.from_file(str(files("mistral_common") / "data" / "tekken_240911.json"))
    special = list(range(tekken.num_special_tokens))
    tokens = [tekken.id_to_byte_piece(index) if index not in special else f"<special {index}>".encode() for index in range(tekken.n_words)]  # fmt: skip  # noqa: E501
    result: dict[str, Any] = {"vocabulary": tekken.n_words, "rows": {}, "versions": {}}
    for kind in (LLGuidance, XGrammar):
        if kind.name in args.engines:
            engine = kind(tokens, special, tekken.eos_id)
            result["rows"][kind.name] = measure(engine, cases, lambda text: tekken.encode(text, bos=False, eos=False))
            result["versions"][kind.name] = version(kind.name)
            print(kind.name, result["rows"][kind.name], flush=True)
    settings = {"schemas": len(cases), "seed": args.seed, "largest": args.largest, "threads": 1}
    store(args.out, result | {"settings": settings})


if __name__ == "__main__":
    main()
