"""How an answer is judged, and how sure a proportion is. Plain Python; knows nothing of models or files."""

import re
from typing import Any

NUMBER = re.compile(r"[-\u2212]?\d+")


def is_correct(row: dict[str, Any], content: str) -> bool:
    """Arithmetic: the last number of the answer is the result. Pictures and talk: the same words, whatever case and full stop."""
    if row["task"] == "arithmetic":
        numbers = NUMBER.findall(content)
        return bool(numbers) and int(numbers[-1].replace("\u2212", "-")) == int(row["answer"])
    return content.strip().rstrip(".").lower() == row["answer"].strip().rstrip(".").lower()


def wilson(right: int, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for `right` of `rows` (E. B. Wilson, 1927); 95 % by default."""
    if rows == 0:
        return 0.0, 1.0
    share, weight = right / rows, z * z / rows
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (share * (1 - share) / rows + weight / (4 * rows)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
