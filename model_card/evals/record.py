"""Where a stored number comes from: command, commit, date, machine and versions; and its file. Knows nothing of what
was measured.
"""

import json
import os
import platform
import shlex
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from modeling_small4.commands.env import instructions

PACKAGES = ("torch", "transformers", "tokenizers", "datasets")
ROOT = Path(__file__).resolve().parents[2]
# What a number can depend on; of stored results and prose it does not.
SOURCES = (
    "modeling_small4",
    "conversion",
    "model_card",
    "pyproject.toml",
    ":(exclude)model_card/results",
    ":(exclude)*.md",
)


def provenance(command: list[str]) -> dict[str, Any]:
    """The part of a stored result that says how it came about; `commit` ends in "-dirty" when tracked files of
    `SOURCES` were changed.
    """
    return {
        "command": shlex.join(command),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "instructions": instructions(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def write(out: Path, record: dict[str, Any], indent: int = 1) -> None:
    """Write a result with its provenance to a file, whose folder is made.

    Raises:
        ValueError: `out` is a link, or a file that holds something else than a result.
    """
    if out.is_symlink() or (out.exists() and not _is_result(out)):
        raise ValueError(f"{out}: is no stored result, so it is not replaced; choose another name.")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_result(file: Path) -> bool:
    try:
        return {"command", "commit"} <= json.loads(file.read_bytes()).keys()
    except (OSError, ValueError, AttributeError):
        return False


def _commit(root: Path = ROOT) -> str | None:
    """None outside a repository."""
    commit = _git(root, "rev-parse", "HEAD")
    changed = commit and _git(root, "status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
    return f"{commit}-dirty" if changed else commit


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=root, check=False)
    return (done.stdout.strip() or None) if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
