"""`small4 env`: what a bug report needs: versions, system, CPU instructions, memory, devices. Must not know: models,
checkpoints.

Versions come from package metadata, so that no optional library is imported. A part that cannot be determined says why;
the command itself does not fail.
"""

import argparse
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from .terminal import describe_bytes

PACKAGE = "modeling-small4"
EXTRA_LIBRARIES = ("bitsandbytes", "flash-attn", "kernels", "triton")  # used by transformers where they are installed
INSTRUCTIONS = {  # torch's name -> the name that is shown; x86 first, then ARM
    "avx2": "avx2", "avx512_f": "avx512", "avx512_vnni": "avx512_vnni", "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx", "amx_bf16": "amx_bf16", "amx_int8": "amx_int8",
    "neon": "neon", "fp16_arith": "fp16", "bf16": "bf16", "dot": "dot", "i8mm": "i8mm", "sve": "sve", "sve2": "sve2",
    "sme": "sme",
}  # fmt: skip
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SMALL4_KERNELS",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 env`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Print the report."""
    found = report()
    print(json.dumps(found) if args.json else as_text(found))


def report() -> dict[str, Any]:
    """Everything, part by part. Sizes are bytes; a package that is not installed has the version None."""
    parts: dict[str, Callable[[], Any]] = {
        PACKAGE: lambda: installed(PACKAGE),
        "commit": commit,
        "python": platform.python_version,
        "system": platform.platform,
        "cpu": cpu,
        "memory": memory,
        "devices": devices,
        "packages": packages,
        "variables": lambda: {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    return {name: _found(part) for name, part in parts.items()}


def _found(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Exception as error:  # a broken driver or an unusual system belongs in the report
        return f"unknown ({type(error).__name__}: {error})"


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def packages() -> dict[str, str | None]:
    """Versions of what this package requires, of its extras but `test`, and of a few libraries that transformers
    uses.
    """
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:  # a clone that is not installed
        lines = ["torch", "transformers"]
    wanted = (line for line in lines if not re.search(r"extra == [\"']test[\"']", line))
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted]
    return {name: installed(name) for name in dict.fromkeys([*names, *EXTRA_LIBRARIES])}


def commit() -> str | None:
    """The commit of the clone that this file lies in, with `-dirty` behind it if tracked files were changed; None
    outside a clone.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    return head and (f"{head}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else head)


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu() -> dict[str, Any]:
    """Name, architecture, cores, threads that torch uses, and instruction sets."""
    import torch

    found = torch.cpu.get_capabilities()
    return {
        "name": found.get("cpu_name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instructions": instructions(),
    }


def instructions() -> list[str]:
    """The CPU's instruction sets for numbers, as torch finds them; x86 first."""
    import torch

    found = torch.cpu.get_capabilities()
    return [shown for name, shown in INSTRUCTIONS.items() if found.get(name)]


def memory() -> dict[str, int]:
    """Main memory in bytes."""
    import psutil

    found = psutil.virtual_memory()
    return {"total_bytes": found.total, "available_bytes": found.available}


def devices() -> list[dict[str, Any]]:
    """The accelerators that torch sees: type, name, memory in bytes, and what else their properties say."""
    import torch

    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if current is None:
        return []
    runtime = torch.version.hip or torch.version.cuda if current.type == "cuda" else None
    return [_device(current.type, index) | {"runtime": runtime} for index in range(torch.accelerator.device_count())]


def _device(kind: str, index: int) -> dict[str, Any]:
    import torch

    module = torch.get_device_module(kind)
    if not hasattr(module, "get_device_properties"):  # mps
        size = module.recommended_max_memory() if hasattr(module, "recommended_max_memory") else None
        return {"device": f"{kind}:{index}", "name": platform.processor(), "memory_bytes": size, "capability": None}
    found = module.get_device_properties(index)
    capability = f"{found.major}.{found.minor}" if hasattr(found, "major") else None
    return {
        "device": f"{kind}:{index}",
        "name": found.name,
        "memory_bytes": found.total_memory,
        "capability": capability,
    }


def as_text(found: dict[str, Any]) -> str:
    """The report in lines."""
    rows = [(name, found[name]) for name in (PACKAGE, "commit", "python", "system")]
    rows += [(name, _line(found[name])) for name in ("cpu", "memory")]
    listed = found["devices"] if isinstance(found["devices"], list) else [found["devices"]]
    rows += [("devices", "none")] if not listed else [("device", _line(device)) for device in listed]
    versions = found["packages"] if isinstance(found["packages"], dict) else {"packages": found["packages"]}
    rows += [(name, number) for name, number in versions.items() if number]
    missing = [name for name, number in versions.items() if not number]
    rows += [("not installed", ", ".join(missing) or "-"), *found["variables"].items()]
    return "\n".join(f"{name:<24}{value or '-'}" for name, value in rows)


def _line(part: object) -> str:
    """The values of a part in one line."""
    if not isinstance(part, dict):
        return str(part)
    return ", ".join(_value(name, value) for name, value in part.items() if value not in (None, "", []))


def _value(name: str, value: Any) -> str:
    """Bytes in words, counts before their name, names alone."""
    what = name.replace("_", " ")
    if name.endswith("_bytes"):
        return f"{describe_bytes(value)} {what.removesuffix(' bytes')}"
    if isinstance(value, int):
        return f"{value} {what}"
    if isinstance(value, list):
        return f"{what} {' '.join(value)}"
    return value if name in ("name", "device", "architecture") else f"{what} {value}"
