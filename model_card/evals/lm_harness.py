"""lm-evaluation-harness on the demo checkpoint, with the tasks of `lm_eval/`, offline.

    python -m model_card.evals.lm_harness [--limit N] [--out model_card/results/lm_eval.json]     # pip install lm-eval
    python -m model_card.evals.lm_harness --write-data                                            # lm_eval/held_out.jsonl anew

from the repository root. The harness knows neither our classes nor a thought: the package is imported first, and it is
told the id of `[/THINK]`, up to which it leaves out what was generated. Prints its scores, and one JSON line last.
"""  # noqa: E501

import argparse
import json
import os
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model_card.card.results import sha256

TASKS = ("arithmetic", "word_problem", "puzzle", "program")  # a question and a short answer, nothing else
FOLDER = Path(__file__).with_name("lm_eval")
DATA = FOLDER / "held_out.jsonl"
SEED, ROWS = 3000, 100


def lines() -> Iterator[str]:
    """The held-out questions and answers as JSON lines, `ROWS` of each task."""
    from model_card.demo_recipe.tasks.data import dataset

    for task in TASKS:
        for row in dataset("held_out", ROWS, SEED, tasks={task: 1.0}):
            shown = {"kind": task, "question": row["messages"][-2]["content"], "answer": row["answer"]}
            yield json.dumps(shown) + "\n"


def run(folder: Path, limit: int | None, batch: int) -> dict[str, Any]:
    """Scores by reasoning mode: `exact_match`, its standard error, `rows`."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    import lm_eval
    from lm_eval.tasks import TaskManager

    import modeling_small4  # noqa: F401  (registers the classes)

    settings = json.loads((folder / "generation_config.json").read_text("utf-8"))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "think_end_token": settings["reasoning_token_ids"]["end_think"]},
        tasks=[f"small4_demo_{mode}" for mode in ("none", "high")],
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
        apply_chat_template=True,
        batch_size=batch,
        device="cpu",
        limit=limit,
    )
    return {
        name.removeprefix("small4_demo_"): {
            "exact_match": score["exact_match,none"],
            "standard_error": score["exact_match_stderr,none"],
            "rows": score["sample_len"],
        }
        for name, score in found["results"].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-data", action="store_true", help="write the tasks' data and stop")
    parser.add_argument("--limit", type=int, help="rows of each task")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("model_card/results/lm_eval.json"))
    args = parser.parse_args()
    if args.write_data:
        DATA.write_text("".join(lines()), encoding="utf-8")
        return
    import torch

    from model_card.evals.record import provenance, write
    from modeling_small4 import demo_checkpoint

    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    record = provenance(["python", "-m", "model_card.evals.lm_harness"])
    record["versions"]["lm_eval"] = version("lm_eval")
    record |= {"weights_sha256": sha256(demo_checkpoint() / "model.safetensors")}
    record |= {"modes": run(demo_checkpoint(), args.limit, args.batch), "seconds": round(time.perf_counter() - begin)}
    write(args.out, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
