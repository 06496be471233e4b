"""Decides which folders are checkpoints of this model, and which of their files may be replaced or deleted: only known
ones.

Reads file names and a few keys of the configuration. Never deletes anything itself.
"""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from modeling_small4.files_reading import shown
from modeling_small4.files_saving import MANIFEST

from .bundle import DOORS, TOKENIZER_FILES, VERBATIM, imports_of
from .checkpoint import CheckpointError, read_json
from .files import PATTERN, RAW_PATTERN
from .raw import KEPT
from .transformers_layout import MODEL_TYPES, OUR_TYPES

_TEXTS = {"config.json", "params.json", KEPT, MANIFEST, *TOKENIZER_FILES, *VERBATIM}
_WEIGHTS = re.compile(
    r"(model|consolidated)(-\d{5}-of-\d{5})?\.safetensors|(model|consolidated)\.safetensors\.index\.json"
)
_RAW_KEYS = {"dim", "n_layers", "kv_lora_rank"}


def why_no_checkpoint(folder: Path) -> str | None:
    """None for a folder that holds a checkpoint of this model; otherwise the reason why it does not, for an error
    message.
    """
    try:
        if _is_file(folder / "config.json"):
            kind = read_json(folder / "config.json").get("model_type")
            return None if kind in MODEL_TYPES + OUR_TYPES else f"its config.json has model_type {shown(kind)}"
        if _is_file(folder / "params.json"):
            missing = _RAW_KEYS - read_json(folder / "params.json").keys()
            return f"its params.json has no '{min(missing)}'" if missing else None
    except (CheckpointError, OSError) as error:
        return f"its configuration cannot be read: {error}"
    return "neither config.json nor params.json is in it"


def is_known(folder: Path, name: str, code: Iterable[str] = ()) -> bool:
    """Whether an entry of a checkpoint folder is a file that conversion writes. `code`: module names of the model's
    code in it.
    """
    known = name in _TEXTS or _WEIGHTS.fullmatch(name) or (name.endswith(".py") and name[:-3] in code)
    return bool(known) and not stat.S_ISDIR(os.lstat(folder / name).st_mode)


def foreign_entries(folder: Path) -> list[str]:
    """Entries of a checkpoint folder that conversion did not write, sorted. They are kept."""
    code = carried_code(folder)
    return sorted(name for name in os.listdir(folder) if not is_known(folder, name, code))


def read_as_weights(names: Iterable[str]) -> list[str]:
    """The names among these that every reader of a checkpoint folder would read as its weights."""
    return [name for name in names if Path(name).match(PATTERN) or Path(name).match(RAW_PATTERN)]


def carried_code(folder: Path) -> set[str]:
    """Modules of the model's code that a folder written with `--with-code` holds: those that its `auto_map` names, and
    what they import.
    """
    try:
        entries = (read_json(folder / "config.json").get("auto_map") or {}).values()
        todo = {entry.split(".")[0] for entry in entries if isinstance(entry, str)} & DOORS
    except (CheckpointError, OSError, AttributeError):
        return set()
    seen: set[str] = set()
    while todo:
        seen |= (present := {name for name in todo if _is_file(folder / f"{name}.py")})
        todo = {name for module in present for name in imports_of(folder / f"{module}.py")} - seen
    return seen


def _is_file(path: Path) -> bool:
    return path.is_file()
