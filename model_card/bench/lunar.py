"""An operation that the demo checkpoint has never met: `a # b`, lunar addition, which takes the larger digit of each
column.

    407 # 58       the problem
    407,58         the thought: the two numbers,
    7,8=8          the columns from the right, a missing digit counting as 0,
    0,5=5
    4,0=4
    458            and their digits put together

A thought has no `#`: the demo never writes one, and LoRA leaves its output head as it is.

(D. Applegate, M. LeBrun, N. Sloane, "Dismal arithmetic", 2011.) Rows as `Small4DataCollator` takes them; whether a
problem is held out depends on its hash. Knows nothing of models or training.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

ASK = (
    "{e}",
    "{e} =",
    "What is {e}?",
    "What is {e}?",
    "Compute {e}.",
    "Calculate {e}.",
    "How much is {e}?",
    "Please work out {e}.",
)
HELD_OUT_SHARE = 0.1


def lunar(left: int, right: int) -> int:
    """The larger digit of each column."""
    width = max(len(str(left)), len(str(right)))
    return int("".join(max(pair) for pair in zip(str(left).zfill(width), str(right).zfill(width), strict=True)))


def think(left: int, right: int) -> str:
    width = max(len(str(left)), len(str(right)))
    columns = list(zip(str(left).zfill(width), str(right).zfill(width), strict=True))
    return "\n".join(
        [f"{left},{right}", *(f"{a},{b}={max(a, b)}" for a, b in reversed(columns)), str(lunar(left, right))]
    )


def is_held_out(left: int, right: int) -> bool:
    """A tenth of all pairs, whatever their order."""
    digest = hashlib.sha256(f"lunar {min(left, right)} {max(left, right)}".encode()).digest()
    return digest[0] < HELD_OUT_SHARE * 256


def rows(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Endless rows of "train" or "held_out" problems of one to four digits, to be thought over; the same seed gives the
    same rows.
    """
    rng = random.Random(f"lunar-{split}-{seed}")
    while True:
        left, right = (
            rng.randrange(10 ** (n - 1) if n > 1 else 0, 10**n) for n in rng.choices((1, 2, 3, 4), (1, 2, 4, 4), k=2)
        )
        if is_held_out(left, right) != (split == "held_out"):
            continue
        question = rng.choice(ASK).format(e=f"{left}{rng.choice(('#', ' # '))}{right}")
        answer = {"role": "assistant", "content": str(lunar(left, right)), "reasoning_content": think(left, right)}
        yield {
            "messages": [{"role": "user", "content": question}, answer],
            "reasoning_mode": "high",
            "answer": str(lunar(left, right)),
        }


def is_right(row: dict[str, Any], message: dict[str, Any]) -> bool:
    """Whether the answer is the number, and nothing else."""
    return message["content"].strip().rstrip(".") == row["answer"]
