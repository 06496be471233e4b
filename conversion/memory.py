"""Peak memory of this process. Nothing else."""

import resource
from pathlib import Path


def peak_rss_bytes() -> int:
    """Largest resident set so far, in bytes: the kernel's VmHWM, which unlike `ru_maxrss` does not count a parent before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
