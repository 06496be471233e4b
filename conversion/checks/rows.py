"""The table of `small4 check`, and which faults need a manifest to be found. Knows no checkpoints."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from modeling_small4.files_reading import reason_of

from ..against import Fault

OK, FAILED, SKIPPED, TOLD = "ok", "FAILED", "skipped", "told"

# What is found by reading the checkpoint alone, and what only a manifest tells.
ALONE = (
    "truncated and missing files, a missing index, files that belong to several sets of weights",
    "missing, extra and misshapen tensors, wrong dtypes",
    "numbers that are not finite or out of proportion",
    "negative, zero and implausible scales (a scale of FP8 or NVFP4 applied twice, or all of them)",
    "dead and duplicate experts, layers and tensors; router rows that are zero or equal; rows of zeros in a matrix",
    "a vocabulary of another size, merges in another order, tokenizer files that disagree",
    "special tokens in other places, also in the settings of generation",
    "a chat template that lays out prompts differently",
    "settings of images that do not fit the model or are not the release's",
    "announced bits, groups and scales of quantized weights that are not the stored ones",
    "a softmax rule that contradicts the original params.json, or the text of --text",
)
BY_MANIFEST = (
    "swapped experts, layers, norms or other tensors of one shape",
    "a flipped bit that leaves a plausible number",
    "rows of a router in another order",
    "rotary rows in the other pairing, keys and values of kv_b swapped, a transposed square matrix",
    "scales that are wrong by a small factor, negative scales of 4-bit groups",
    "another tokenizer of the same size, another pattern that splits texts into words",
    "changed configuration values that fit the same tensors",
)


@dataclass(frozen=True)
class Row:
    """One line of the table. status: `OK`, `FAILED`, `SKIPPED`, or `TOLD` for what has no verdict. data: for the JSON
    file.
    """

    check: str
    status: str
    summary: str
    faults: list[Fault] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """What stands in the JSON file."""
        out: dict[str, Any] = {"check": self.check, "status": self.status, "summary": self.summary}
        out |= {"faults": [asdict(fault) for fault in self.faults]} if self.faults else {}
        return out | ({"data": self.data} if self.data else {})


def judged(check: str, faults: list[Fault], summary: str, data: dict[str, Any] | None = None) -> Row:
    """A row that has failed if there are faults; `summary` is what it says otherwise."""
    if faults:
        some = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        return Row(
            check, FAILED, f"{some}: {', '.join(dict.fromkeys(fault.kind for fault in faults))}", faults, data or {}
        )
    return Row(check, OK, summary, data=data or {})


def tried(check: str, make: Callable[[], list[Row]]) -> list[Row]:
    """What `make` returns, or a failed row where a file is so damaged that it stumbles."""
    try:
        return make()
    except MemoryError:
        raise
    except Exception as error:  # libraries raise many kinds over damaged files
        return [Row(check, FAILED, "cannot be checked", [Fault("damaged file", check, reason_of(error))])]


def table(rows: list[Row], shown: int = 12) -> str:
    """The rows as text, the faults of each below it; of many the first `shown`."""
    width = max(len(row.check) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.check:<{width}}  {row.status:<7}  {row.summary}")
        lines += [f"{'':<{width}}    - {fault.kind}: {fault}" for fault in row.faults[:shown]]
        if len(row.faults) > shown:
            lines.append(f"{'':<{width}}    - and {len(row.faults) - shown} more, all of them in the file of --json")
    return "\n".join(lines)
