"""Metric for `evaluate.load(path of this file)`: share of right answers with Wilson's 95 % interval. Loaded from disk,
without a network.

It must not import anything of the repository: `evaluate` copies the file into its own cache.
"""

import datasets
import evaluate

DESCRIPTION = "Share of predictions that equal their reference, with its 95 % score interval (E. B. Wilson, 1927)."
INPUTS = (
    "predictions, references: what is compared, as strings. Returns accuracy, interval_95 [low, high], right, rows."
)


def wilson(right: int, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for `right` of `rows`; 95 % by default, all of [0, 1] for no rows."""
    if rows == 0:
        return 0.0, 1.0
    share, weight = right / rows, z * z / rows
    center = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (share * (1 - share) / rows + weight / (4 * rows)) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)


class WilsonAccuracy(evaluate.Metric):
    """`evaluate`'s exact match, with how sure it is."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, object]:
        right = sum(given == wanted for given, wanted in zip(predictions, references, strict=True))
        low, high = wilson(right, len(references))
        return {
            "accuracy": right / len(references),
            "interval_95": [low, high],
            "right": right,
            "rows": len(references),
        }
