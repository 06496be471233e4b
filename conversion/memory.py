"""Peak memory of this process. Nothing else."""

import sys
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_rss_bytes() -> int:
    """Largest resident set so far, in bytes: Linux's VmHWM, which unlike `ru_maxrss` does not count a parent before
    exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        found = psutil.Process().memory_info()
        return getattr(found, "peak_wset", found.rss)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
