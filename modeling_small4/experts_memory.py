"""How much memory the routed experts of a model may take: what the caller requested, or what this process has left.

Knows no tensors, and no files except those in which the system publishes its limits.
"""

import re
from contextlib import suppress
from pathlib import Path

import psutil

from .files_reading import shown

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
MEMBERSHIP = Path("/proc/self/cgroup")
TIERS = ("gpu", "cpu")
COMPUTE = ("gpu", "fastest")
SHARE = 0.85  # of what is left beside the other weights; the rest is for KV cache and activations
SPARE = 160 * 2**20  # bytes for threads and their buffers


def parse_size(size: str | int) -> int:
    """Bytes of `"48GiB"`, `"48 GB"` or a number.

    Raises:
        ValueError: Anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", str(size).upper(), re.ASCII)
    if match is None or match[2] not in UNITS or isinstance(size, bool):
        raise ValueError(
            f"{shown(size)} is not an amount of memory; write it as '48GiB', '500MB' or a number of bytes."
        )
    return int(float(match[1]) * UNITS[match[2]])


def parse_request(asked: dict[str, str | int] | str | int) -> tuple[dict[str, int], bool]:
    """As `parse_memory`; and whether the CPU computes experts in main memory where that is quicker than copying them,
    which `"compute": "fastest"` says beside the sizes.

    Raises:
        ValueError: As `parse_memory`, or what is no way to compute.
    """
    named = dict(_by_name(asked))
    compute = named.pop("compute", COMPUTE[0])
    if compute not in COMPUTE:
        raise ValueError(
            f"expert_memory has 'compute': {shown(compute)}; it can be 'gpu', which is the default, or 'fastest': the "
            "CPU computes experts in main memory where that is quicker than copying them."
        )
    sizes = parse_memory(named)
    if compute == "fastest" and "gpu" not in sizes:
        raise ValueError(
            "expert_memory has 'compute': 'fastest', which chooses between an accelerator and the CPU, and no 'gpu'; "
            "add 'gpu': '18GiB', or leave 'compute' out."
        )
    return sizes, compute == "fastest"


def parse_memory(asked: dict[str, str | int] | str | int) -> dict[str, int]:
    """Bytes by tier, of `{"gpu": "18GiB", "cpu": "48GiB"}` or `"gpu=18GiB,cpu=48GiB"`, or of `"48GiB"` alone, which is
    main memory.

    Raises:
        ValueError: A tier that is none of `TIERS`, or what is no amount.
    """
    named = _by_name(asked)
    if not named or (unknown := [tier for tier in named if tier not in TIERS]):
        given = shown(unknown[0]) if named else "nothing"
        raise ValueError(
            f"expert_memory names {given}; it names 'cpu', and 'gpu' where there is one: {{'cpu': '48GiB'}}."
        )
    return {tier: parse_size(size) for tier, size in named.items()}


def _by_name(asked: dict[str, str | int] | str | int) -> dict[str, str | int]:
    if isinstance(asked, str) and "=" in asked:
        words = [part.partition("=") for part in asked.split(",")]
        names = [name.strip() for name, _, _ in words]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"expert_memory names {shown(twice)} twice in {shown(asked)}; give it one size.")
        return dict(zip(names, (size.strip() for _, _, size in words), strict=True))
    return asked if isinstance(asked, dict) else {"cpu": asked}


def free_memory() -> int:
    """Bytes of main memory that this process can still allocate: the smaller of what the machine has left and what its
    limits allow.
    """
    return max(0, min(psutil.virtual_memory().available, _left_of_rlimits(), _left_of_cgroup()))


def _left_of_rlimits() -> int:
    """By `ulimit -d` (private memory) and `ulimit -v` (addresses)."""
    left = [2**63]
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = psutil.Process().memory_info()
        for limit, taken in ((resource.RLIMIT_DATA, getattr(used, "data", 0)), (resource.RLIMIT_AS, used.vms)):
            soft = resource.getrlimit(limit)[0]
            if soft != resource.RLIM_INFINITY:
                left.append(soft - taken)
    return min(left)


def _left_of_cgroup(root: Path = Path("/sys/fs/cgroup")) -> int:
    """By the control groups of this process (version 1 or 2) and their parents. File cache counts as free, because the
    kernel drops it when needed.
    """
    left = [2**63]
    for folder, limit, usage in _cgroups(root):
        with suppress(OSError, ValueError):
            cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cache = int(cached.get("inactive_file", 0)) + int(cached.get("active_file", 0))
            left.append(int((folder / limit).read_text()) - int((folder / usage).read_text()) + cache)
    return min(left)


def _cgroups(root: Path) -> list[tuple[Path, str, str]]:
    found = []
    with suppress(OSError):
        for line in MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            top = root if not controllers else root / "memory"
            names = (
                ("memory.max", "memory.current")
                if not controllers
                else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            )
            if not controllers or "memory" in controllers.split(","):
                folder = top / path.lstrip("/")
                around = [folder, *folder.parents]
                found += [(each, *names) for each in around if each.is_relative_to(top)]
    return found


def affordable(free: int, others: int) -> int:
    """Bytes for experts if `free` bytes are left and the weights that always stay in memory still need `others`."""
    return max(0, int((free - others - SPARE) * SHARE))
