"""Copies of experts between main memory and an accelerator, beside what the accelerator computes.

The only file of the offloaded experts that knows streams and events. Must not know: which expert is copied, and why.
"""

from threading import Lock
from typing import Any, Protocol

import torch


class Link(Protocol):
    """Between main memory and one accelerator. device: where slots and computation are."""

    device: torch.device

    def mark(self) -> Any:
        """The end of what this thread has given the accelerator to do so far."""

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Any) -> None:
        """Copy bytes either way, once the accelerator is past the mark `after`. Returns when they are there."""

    def free(self) -> int:
        """Bytes of the accelerator's memory that are free."""


class StreamLink:
    """A `Link` for devices with streams as CUDA has them (NVIDIA, ROCm, XPU). Copies have a stream of their own in
    either direction.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = torch.get_device_module(device)
        self._lock = Lock()
        self._streams: dict[bool, Any] = {}

    def mark(self) -> Any:
        """An event in the stream that this thread computes in."""
        event = self._module.Event()
        event.record(self._module.current_stream(self.device))
        return event

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Any) -> None:
        """As `Link.copy`; main memory that is not pinned makes it slower, not wrong."""
        stream = self._stream(target.device == self.device)
        with self._module.stream(stream):
            if after is not None:
                stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            done = self._module.Event()
            done.record(stream)
        done.synchronize()

    def free(self) -> int:
        """As the driver says."""
        return int(self._module.mem_get_info(self.device)[0])

    def _stream(self, up: bool) -> Any:
        with self._lock:
            if up not in self._streams:
                self._streams[up] = self._module.Stream(device=self.device)
            return self._streams[up]


def link_to(device: torch.device) -> Link | None:
    """The link to an accelerator; None for a device that has no streams or shares main memory."""
    return StreamLink(device) if device.type in ("cuda", "xpu") else None
