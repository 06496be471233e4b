"""Processes that train one model together: each has a copy and a share of every step's rows; gradients add up in shared memory.

Two processes of one thread each use two cores far better than one process of two threads when matrices are this small, and they do
not stall when another program takes a core for a moment. Knows nothing of the model. A team of one does nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.multiprocessing as processes
from torch import nn

PATIENCE = 3600.0  # seconds to wait for the others: a machine may sleep for a while


class Team:
    """One member's view. `size` members, of which this one is `rank`; `board` is shared memory, float32 `[size, numbers]`."""

    def __init__(self, rank: int = 0, size: int = 1, board: torch.Tensor | None = None, barrier: Any = None) -> None:
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Each gradient becomes the sum of all members' gradients; one that nobody has stays None."""
        if self.size == 1:
            return
        total = sum(parameter.numel() for parameter in parameters)
        mine = self._row(total + len(parameters))
        flat = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
        torch.cat([*flat, torch.tensor([float(p.grad is not None) for p in parameters])], out=mine)
        self.wait()
        summed = self._rows(total + len(parameters)).sum(0)
        self.wait()
        for parameter, gradient, owners in zip(
            parameters, summed[:total].split([p.numel() for p in parameters]), summed[total:].tolist(), strict=True
        ):
            parameter.grad = gradient.view_as(parameter) if owners else None

    def share_out(self, function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """`function(rows)`, of which each member computes a share of the rows; it must keep the shape."""
        if self.size == 1:
            return function(rows)
        assert self.board is not None
        whole = self.board[0, : rows.numel()].view_as(rows)
        ends = [len(rows) * member // self.size for member in range(self.size + 1)]
        first, last = ends[self.rank], ends[self.rank + 1]
        if last > first:
            whole[first:last] = function(rows[first:last])
        self.wait()
        result = whole.clone()
        self.wait()
        return result

    def wait(self) -> None:
        if self.size > 1:
            self.barrier.wait(PATIENCE)

    def _row(self, numbers: int) -> torch.Tensor:
        return self._rows(numbers)[self.rank]

    def _rows(self, numbers: int) -> torch.Tensor:
        assert self.board is not None
        assert numbers <= self.board.shape[1]
        return self.board[:, :numbers]


def run_as_team(work: Callable[..., None], size: int, numbers: int, *arguments: Any) -> None:
    """Call `work(team, *arguments)` in `size` processes at once, or right here for a team of one; `numbers` is the board's width."""
    if size == 1:
        work(Team(), *arguments)
        return
    context = processes.get_context("spawn")
    board = torch.zeros(size, numbers).share_memory_()
    processes.spawn(_member, (work, size, board, context.Barrier(size), arguments), nprocs=size)


def _member(rank: int, work: Callable[..., None], size: int, board: torch.Tensor, barrier: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    work(Team(rank, size, board, barrier), *arguments)
