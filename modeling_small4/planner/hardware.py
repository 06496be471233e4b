"""Machines by name: `4xH100`, `1xDGX-B200`, `2x24GB+64GB-ram`. Their memory and what precisions they compute in.

Knows nothing of models. Capacities are what the driver reports, in bytes.
"""

import re
from dataclasses import dataclass

from ..files_reading import shown

MIB = 2**20
# name -> (memory in MiB, compute capability); AMD's cards have none.
GPUS: dict[str, tuple[int, float]] = {
    "A100": (81920, 8.0),
    "A100-40GB": (40960, 8.0),
    "L40S": (46068, 8.9),
    "H100": (81559, 9.0),
    "H200": (143771, 9.0),
    "B200": (183359, 10.0),
    "RTX3090": (24576, 8.6),
    "RTX4090": (24564, 8.9),
    "RTX5090": (32607, 12.0),
    "RTX6000-ADA": (49140, 8.9),
    "RTX-PRO-6000": (97887, 12.0),
    "MI300X": (196592, 0.0),
}
NODES = {"DGX-A100": (8, "A100"), "DGX-H100": (8, "H100"), "DGX-H200": (8, "H200"), "DGX-B200": (8, "B200")}
UNITS = {"MB": 10**6, "MIB": 2**20, "GB": 10**9, "GIB": 2**30, "TB": 10**12, "TIB": 2**40}
# Memory that GPU and CPU share: name -> (memory in MiB, capability). It is planned like a GPU's, of which the system
# keeps a part; other sizes are written 128GB-mac or 128GB-unified.
UNIFIED: dict[str, tuple[int, float]] = {
    "DGX-SPARK": (122571, 12.1),
    "STRIX-HALO": (131072, 0.0),
}
GPU_SHARE, UNIFIED_SHARE, RAM_SHARE = (
    0.9,
    0.75,
    0.85,
)  # the rest: driver, kernels' workspace, fragmentation; the operating system
_SIZE = r"(\d+(?:\.\d+)?)\s*([MGT]I?B)"


@dataclass(frozen=True)
class Device:
    """A memory that weights can lie in. `name`: 0, 1, ... for GPUs as transformers' device_map counts them, "cpu" or
    "disk".
    """

    name: int | str
    model: str
    capacity: int
    capability: float = 0.0
    unified: bool = False

    @property
    def usable(self) -> int:
        """Bytes that a plan may fill: 90 % of a GPU (vLLM's default too), 75 % of memory that it shares with the system
        (what Metal recommends), 85 % of main memory, all of a disk."""
        share = {"cpu": RAM_SHARE, "disk": 1.0}.get(str(self.name), UNIFIED_SHARE if self.unified else GPU_SHARE)
        return int(self.capacity * share)


@dataclass(frozen=True)
class Machine:
    """GPUs, main memory and disk under one name."""

    name: str
    gpus: tuple[Device, ...]
    ram: Device | None = None
    disk: Device | None = None

    @property
    def alike(self) -> bool:
        """Whether there are several GPUs, all of one kind."""
        return len(self.gpus) > 1 and len({gpu.model for gpu in self.gpus}) == 1

    def computes(self, precision: str) -> bool:
        """Whether the GPUs compute in `precision`; without that, weights are expanded to bfloat16 or unpacked as they
        are used.
        """
        least = {"fp8": 8.9, "nvfp4": 10.0}.get(precision, 0.0)
        return bool(self.gpus) and all(gpu.capability >= least for gpu in self.gpus) if least else True


def parse_machine(text: str) -> Machine:
    """Reads a machine: parts joined by `+`, each `[Nx]KIND`, where KIND is a name of `GPUS`, `NODES` or `UNIFIED`,
    `24GB` (a GPU of that size that computes in FP8), `128GB-mac` (unified memory), `64GB-ram` or `1TB-disk`. GB are
    10^9 bytes, GiB 2^30.

    Raises:
        ValueError: A part that is none of these.
    """
    gpus: list[Device] = []
    ram = disk = 0
    for part in text.split("+"):
        count, kind = _counted(part.strip(), text)
        if match := re.fullmatch(_SIZE + r"[- ]?(RAM|DISK|GPU|MAC|UNIFIED)?", kind):
            size = int(float(match[1]) * UNITS[match[2]]) * count
            ram += size if match[3] == "RAM" else 0
            disk += size if match[3] == "DISK" else 0
            number = count if match[3] in (None, "GPU") else 0
            gpus += [Device(len(gpus) + i, f"{match[1]}{match[2]}", size // count, 8.9) for i in range(number)]
            if match[3] in ("MAC", "UNIFIED"):
                gpus += [Device(len(gpus) + i, kind, size // count, 0.0, unified=True) for i in range(count)]
        elif kind in UNIFIED:
            memory, capability = UNIFIED[kind]
            gpus += [Device(len(gpus) + i, kind, memory * MIB, capability, unified=True) for i in range(count)]
        else:
            nodes, model = NODES.get(kind, (1, kind))
            if model not in GPUS:
                raise ValueError(_unknown(part.strip(), text))
            memory, capability = GPUS[model]
            gpus += [Device(len(gpus) + i, model, memory * MIB, capability) for i in range(count * nodes)]
    if not gpus and not ram:
        raise ValueError(f"{shown(text)} has neither a GPU nor main memory; name at least one, such as 64GB-ram.")
    main = Device("cpu", "ram", ram) if ram else None
    return Machine(text, tuple(gpus), main, Device("disk", "disk", disk) if disk else None)


def this_machine() -> Machine:
    """The machine this process runs on: its CUDA GPUs, or a Mac's, and the main memory that is there."""
    import psutil
    import torch

    ram = psutil.virtual_memory().total
    if torch.backends.mps.is_available():
        name = f"this machine (Apple GPU, {ram / 2**30:.0f} GiB of unified memory)"
        return Machine(name, (Device(0, "mps", ram, unified=True),))
    gpus = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        capability = found.major + found.minor / 10
        gpus.append(Device(index, found.name, found.total_memory, capability, bool(getattr(found, "is_integrated", 0))))
    names = [f"{len(gpus)}x {gpus[0].model}"] if gpus else []
    if any(gpu.unified for gpu in gpus):
        return Machine(f"this machine ({names[0]}, unified memory)", tuple(gpus))
    name = " + ".join([*names, f"{ram / 2**30:.0f} GiB of main memory"])
    return Machine(f"this machine ({name})", tuple(gpus), Device("cpu", "ram", ram))


def _counted(part: str, whole: str) -> tuple[int, str]:
    match = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?(\S.*)", part)
    if match is None or match[1] == "0":
        raise ValueError(_unknown(part, whole))
    kind = match[2].upper().replace("_", "-")
    spellings = {name.replace("-", ""): name for name in [*GPUS, *NODES, *UNIFIED]}
    return int(match[1] or 1), spellings.get(re.sub(r"[- ]", "", kind), kind)


def _unknown(part: str, whole: str) -> str:
    names = ", ".join([*GPUS, *NODES, *UNIFIED])
    return (
        f"{shown(part)} in {shown(whole)} is no device: write parts such as 4xH100, 24GB (a GPU), 128GB-mac (unified "
        "memory), 64GB-ram or 1TB-disk, joined by +; "
        f"known names: {names}."
    )
