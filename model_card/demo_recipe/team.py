"""Processes that train one model together: each has a copy and a share of every step's rows; gradients are added up by
torch.distributed.

Two processes of one thread each use two cores far better than one process of two threads when matrices are this small,
and they do not stall when another program takes a core for a moment. Knows nothing of the model. A team of one does
nothing.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import nn

PATIENCE = timedelta(hours=1)  # how long to wait for the others: a machine may sleep for a while


@dataclass(frozen=True)
class Team:
    """One member's view: `size` members, of which this one is `rank`."""

    rank: int = 0
    size: int = 1

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Each gradient becomes the sum of all members' gradients; one that nobody has stays None."""
        if self.size == 1:
            return
        lengths = [parameter.numel() for parameter in parameters]
        flat = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
        summed = torch.cat([*flat, torch.tensor([float(p.grad is not None) for p in parameters])])
        dist.all_reduce(summed)
        *gradients, owners = summed.split([*lengths, len(parameters)])
        for parameter, gradient, owned in zip(parameters, gradients, owners.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if owned else None

    def share_out(self, function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """`function(rows)`, of which each member computes a share of the rows; it must keep the shape."""
        if self.size == 1:
            return function(rows)
        whole = torch.zeros_like(rows)
        own = slice(len(rows) * self.rank // self.size, len(rows) * (self.rank + 1) // self.size)
        if len(rows[own]):
            whole[own] = function(rows[own])
        dist.all_reduce(whole)
        return whole

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def run_as_team(work: Callable[..., None], size: int, *arguments: Any) -> None:
    """Call `work(team, *arguments)` in `size` processes at once, or right here for a team of one."""
    if size == 1:
        work(Team(), *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_member, (work, size, Path(folder) / "meeting", arguments), nprocs=size)


def _member(rank: int, work: Callable[..., None], size: int, meeting: Path, arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=PATIENCE)
    try:
        work(Team(rank, size), *arguments)
    finally:
        dist.destroy_process_group()
