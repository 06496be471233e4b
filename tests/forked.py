"""`python ...` that does not wait for imports: processes forked from one that has imported torch, transformers and the
package. They see no GPU.

Not for tests of how an interpreter starts, nor of settings that a library reads when it is imported.
"""

import gc
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if FORKS else "spawn")
IMPORTED = (
    *("torch.distributed.tensor.parallel", "transformers.generation", "transformers.trainer", "modeling_small4"),
    *("modeling_small4.modeling_small4", "modeling_small4.processing_small4", "small4_conversion.convert"),
)


class Python:
    """A running `python *words`, which begin with `-m`, `-c` or the name of a file."""

    def __init__(self, *words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        _prepare()
        self.words, self.folder = words, tempfile.TemporaryDirectory()
        given = (words, cwd or Path.cwd(), dict(os.environ if env is None else env), Path(self.folder.name))
        self.process = CONTEXT.Process(target=_begin, args=given)
        self.process.start()

    def done(self, timeout: float = 3600) -> subprocess.CompletedProcess[str]:
        """Waits for its end; what `subprocess.run` returns."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        out, error = (Path(self.folder.name, name).read_text("utf-8", "replace") for name in ("out", "error"))
        self.folder.cleanup()
        assert self.process.exitcode is not None
        return subprocess.CompletedProcess(self.words, self.process.exitcode, out, error)


def python(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python *words` to its end."""
    return Python(*words, cwd=cwd, env=env).done()


def child(module: str, *arguments: Any) -> dict[str, Any]:
    """In place of `model_card.bench.harness.child`."""
    done = python("-m", module, *map(str, arguments))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def together(script: Path, *words: str, count: int = 2) -> str:
    """The script in `count` processes that torch.distributed can connect, as torchrun starts them. What they say on
    standard error; where one fails, the others are stopped.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "WORLD_SIZE": f"{count}", "OMP_NUM_THREADS": "1"}
    common |= {"LOCAL_WORLD_SIZE": f"{count}", "GROUP_RANK": "0", "CUDA_VISIBLE_DEVICES": ""}
    running = []
    for rank in range(count):
        own = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
        running.append(Python(str(script), *words, cwd=script.parent, env=os.environ | common | own))
    waiting = [each.process for each in running]
    while waiting and not any(each.exitcode for each in waiting):
        connection.wait([each.sentinel for each in waiting])
        waiting = [each for each in waiting if each.exitcode != 0]
    for each in waiting:
        each.kill()
    ended = [each.done() for each in running]
    errors = "".join(each.stderr for each in ended)
    assert not any(each.returncode for each in ended), errors[-4000:]
    return errors


def spawn(function: Callable[..., None], args: tuple[Any, ...], nprocs: int) -> None:
    """In place of `torch.multiprocessing.spawn`."""
    _prepare()
    torch.multiprocessing.start_processes(function, args, nprocs, start_method=CONTEXT.get_start_method())


def _prepare() -> None:
    """Start the process that all others are forked from, once for each test process."""
    if FORKS:
        CONTEXT.set_forkserver_preload(list(IMPORTED))
        with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
            forkserver.ensure_running()


def _begin(words: tuple[str, ...], cwd: Path, env: dict[str, str], folder: Path) -> None:
    """In the new process: everything is as the interpreter would find it."""
    gc.freeze()  # what was imported stays; libraries have the garbage collector look through all that is not frozen
    for descriptor, name in ((1, "out"), (2, "error")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if "OMP_NUM_THREADS" in env:
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    first, *rest = words
    sys.path.insert(0, str(cwd))
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    file = Path(first)
    if first == "-c":
        file = folder / "code.py"
        file.write_text(rest.pop(0), encoding="utf-8")
    sys.path[0] = str(file.resolve().parent) if first != "-c" else sys.path[0]
    sys.argv = [str(file), *rest]
    runpy.run_path(str(file), run_name="__main__")
