"""How many answers under random JSON schemas fit them, and what a grammar adds to the time of a token.

Run: `python -m model_card.bench.grammar_validity --schemas 1000`. Half of the schemas are answered greedily, half
sampled; a quarter after a thought. Needs the extra `grammar` and `jsonschema`, which is the judge.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from jsonschema import Draft202012Validator

from model_card.bench.harness import store
from model_card.bench.random_schemas import random_schema
from modeling_small4 import Small4ForCausalLM, Small4Processor, demo_checkpoint


def ask(
    model: Small4ForCausalLM, processor: Small4Processor, schemas: list[Any], mode: str, sampled: bool, tokens: int
) -> list[list[int]]:
    """Ids of the answers, one for each schema, of one call."""
    chats = [[{"role": "user", "content": f"Answer {index} in JSON."}] for index in range(len(schemas))]
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", reasoning_mode=mode
    )
    sampling = {"do_sample": True, "temperature": 1.5, "top_k": 0} if sampled else {"do_sample": False}
    out = model.generate(
        **inputs, grammar=schemas, tokenizer=processor, max_new_tokens=tokens, reasoning_mode=mode,
            max_thinking_tokens=40, **sampling
    )  # fmt: skip
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def verdict(processor: Small4Processor, schema: object, ids: list[int]) -> str:
    """ "valid", or what is wrong."""
    text = processor.parse_response(ids)["content"]
    if processor.tokenizer.eos_token_id not in ids:
        return "cut off"
    try:
        errors = list(Draft202012Validator(schema).iter_errors(json.loads(text)))
    except ValueError:
        return "no JSON"
    return "does not fit" if errors else "valid"


def overhead(model: Small4ForCausalLM, processor: Small4Processor, runs: int) -> dict[str, float]:
    """Milliseconds of a token within a JSON string, with a grammar and without, and the median ratio of paired runs."""
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "Hello."}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", reasoning_mode="none",
    )  # fmt: skip
    pairs = []
    for _ in range(runs + 1):
        times = []
        for grammar in (None, {"type": "object"}):
            began = time.perf_counter()
            out = model.generate(
                **inputs,
                max_new_tokens=128,
                min_new_tokens=100,
                tokenizer=processor,
                reasoning_mode="none",
                grammar=grammar,
            )
            times.append((time.perf_counter() - began) * 1e3 / (out.shape[1] - inputs["input_ids"].shape[1]))
        pairs.append(times)
    free, ruled = (statistics.median(pair[side] for pair in pairs[1:]) for side in (0, 1))
    ratio = statistics.median(pair[1] / pair[0] for pair in pairs[1:])
    return {"free_ms": free, "grammar_ms": ruled, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rows", type=int, default=25)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model, processor = (kind.from_pretrained(demo_checkpoint()) for kind in (Small4ForCausalLM, Small4Processor))
    counts: dict[str, int] = {}
    for first in range(0, args.schemas, args.rows):
        seeds = range(args.seed + first, args.seed + min(first + args.rows, args.schemas))
        schemas, turn = [random_schema(seed) for seed in seeds], first // args.rows
        answers = ask(model, processor, schemas, "high" if turn % 4 == 3 else "none", turn % 2 == 1, args.tokens)
        for seed, schema, ids in zip(seeds, schemas, answers, strict=True):
            said = verdict(processor, schema, ids)
            counts[said] = counts.get(said, 0) + 1
            if said != "valid":
                print(seed, said, processor.tokenizer.decode(ids)[:200], json.dumps(schema)[:400], flush=True)
        print(first + len(schemas), counts, flush=True)
    settings = {name: getattr(args, name) for name in ("schemas", "seed", "tokens", "rows")}
    store(args.out, {"answers": counts, "overhead": overhead(model, processor, args.runs), "settings": settings})


if __name__ == "__main__":
    main()
