"""Compiles the C source in `stored_source` at first use and loads it. Without a C compiler there is no library, and
torch does the work.

`SMALL4_KERNELS` chooses: "auto" (the default), "off", or the name of a set of instructions. Compiled files are kept in
a folder of the user's cache that nobody else can write to. Must not know: what weights mean.
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from transformers.utils import logging

from .files_reading import shown
from .stored_source import COMMON, FEW_TOKENS, PLAIN, RUN, SCALAR_DECODE, SCALAR_SUM, STATE
from .stored_source_arm import NEON_DECODE, NEON_SUM
from .stored_source_panels import PANELS
from .stored_source_x86 import AVX2_DECODE, AVX2_SUM, AVX512_DECODE, AVX512_SUM

logger = logging.get_logger(__name__)

VARIABLE = "SMALL4_KERNELS"
OPTIONS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
SECONDS = 120  # a compiler that takes longer is stopped
AVX512 = ("f", "bw", "vl", "dq")


@dataclass(frozen=True)
class Variant:
    """A set of instructions.

    needs: names of `torch.cpu.get_capabilities`. machines: of `platform.machine`; none means any.
    narrow: bfloat16 is multiplied without turning it to float32.
    """

    name: str
    source: str
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    narrow: bool = False


_X86 = ("x86_64", "AMD64")
DRIVER = FEW_TOKENS + PANELS + RUN
_AVX512_SOURCE = COMMON + AVX512_DECODE + STATE + AVX512_SUM + DRIVER
_AVX512 = Variant(
    "avx512",
    _AVX512_SOURCE,
    needs=tuple(f"avx512_{name}" for name in AVX512),
    options=(*(f"-mavx512{name}" for name in AVX512), "-mfma"),
    machines=_X86,
)
_AVX512_BF16 = replace(
    _AVX512,
    name="avx512_bf16",
    needs=(*_AVX512.needs, "avx512_vbmi", "avx512_bf16"),
    options=(*_AVX512.options, "-mavx512vbmi", "-mavx512bf16"),
    narrow=True,
)
_AVX2 = Variant(
    "avx2",
    COMMON + AVX2_DECODE + STATE + AVX2_SUM + PLAIN + DRIVER,
    needs=("avx2", "fma3", "f16c"),
    options=("-mavx2", "-mfma", "-mf16c"),
    machines=_X86,
)
_NEON = Variant("neon", COMMON + NEON_DECODE + STATE + NEON_SUM + PLAIN + DRIVER, machines=("aarch64", "arm64"))
_SCALAR = Variant("scalar", COMMON + SCALAR_DECODE + STATE + SCALAR_SUM + PLAIN + DRIVER)
VARIANTS = {variant.name: variant for variant in (_AVX512_BF16, _AVX512, _AVX2, _NEON, _SCALAR)}  # the fastest first


class Unavailable(Exception):
    """Why there are no kernels: a message that completes "because ..."."""


class Library:
    """A loaded file of kernels."""

    def __init__(self, path: Path, variant: Variant) -> None:
        self.variant, self._process = variant, os.getpid()
        file = ctypes.CDLL(str(path))
        file.start()  # fills a table
        self._run = file.run
        self._run.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
        self._parallel = _openmp()

    def run(self, jobs: list[bytes], threads: int) -> bool:
        """Do all jobs, each of them a `Job` of the C text, with at most so many threads; False, with nothing done, if a
        weight has scales that the kernels do not take.

        A process forked from the one that loaded the library takes one thread: OpenMP's others do not exist there.
        """
        if self._parallel is None or self._process != os.getpid():
            threads = 1
        done = self._run(b"".join(jobs), len(jobs), threads, self._parallel)
        if not done:
            raise MemoryError("no memory for the buffers of a product with stored weights")
        return done > 0


def _openmp() -> int | None:
    """Address of the function that runs another one in all threads of the OpenMP runtime that torch uses, if it can be
    had.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):  # another runtime, or Windows
        return None


_lock = Lock()


def library() -> Library | None:
    """The kernels for this processor, compiled if need be; None when there are none, which is said once."""
    with _lock:
        return _library(os.environ.get(VARIABLE, "auto"))


@cache
def _library(choice: str) -> Library | None:
    if choice == "off":
        return None
    try:
        return load(_variant(choice))
    except Unavailable as reason:
        logger.warning(f"Weights held as stored are multiplied by torch alone, several times slower, because {reason}.")
        return None


def _variant(choice: str) -> Variant:
    if choice != "auto" and choice not in VARIANTS:
        raise ValueError(f"{VARIABLE}={shown(choice)} is not known; choose from auto, off, {', '.join(VARIANTS)}")
    if sys.byteorder != "little" or sys.platform == "win32":
        raise Unavailable("there are no kernels for this system")
    named = VARIANTS.values() if choice == "auto" else [VARIANTS[choice]]
    for variant in named:
        if runs_here(variant):
            return variant
    raise Unavailable("this processor lacks the instructions of " + ", ".join(variant.name for variant in named))


def runs_here(variant: Variant) -> bool:
    """Whether this processor has all instructions of a variant."""
    if variant.machines and platform.machine() not in variant.machines:
        return False
    capabilities = torch.cpu.get_capabilities()
    return all(capabilities.get(name) for name in variant.needs)


def load(variant: Variant, *options: str) -> Library:
    """The library of a variant, from the cache or compiled. options: further ones of the compiler. Raises
    Unavailable.
    """
    compiler = _compiler()
    key = [variant.source, *compiler, *OPTIONS, *variant.options, *options, platform.machine(), *platform.libc_ver()]
    name = f"{variant.name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.so"
    try:
        with _folder() as folder:
            return _loaded(folder / name, [*compiler, *OPTIONS, *variant.options, *options], variant)
    except OSError as error:
        raise Unavailable(f"the compiled kernels cannot be kept or loaded ({error})") from error


def _loaded(path: Path, command: list[str], variant: Variant) -> Library:
    if path.exists():
        try:
            return Library(path, variant)
        except OSError:
            logger.info(f"{path} cannot be loaded; it is compiled again.")
    _compile(path, command, variant.source)
    return Library(path, variant)


def _compiler() -> list[str]:
    """The command of a C compiler: `$CC`, the system's, or that of the package `ziglang`."""
    if chosen := shlex.split(os.environ.get("CC", "")):
        return chosen
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise Unavailable("no C compiler was found (cc, gcc, clang, or `pip install ziglang`)")


def _compile(path: Path, command: list[str], source: str) -> None:
    """Write `path` in one step, so that a process that reads it at the same time finds all of it or nothing."""
    logger.info(f"Compiling the kernels for stored weights, once: {path}")
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        text, made = Path(work, "kernels.c"), Path(work, path.name)
        text.write_text(source)
        try:
            done = subprocess.run(
                [*command, str(text), "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                errors="replace",
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"the compiler does not run: {error}") from error
        if done.returncode or not made.exists():
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
            raise Unavailable(f"`{shlex.join(command)}` failed: {said}")
        made.chmod(0o700)
        made.replace(path)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that only this user can write to: that of the user's cache, or else one for this process alone."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "small4", "kernels")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        ours = _only_ours(path)
    except (OSError, RuntimeError, AttributeError):  # not writable, no home, or a system without owners of files
        ours = False
    if ours:
        yield path
        return
    logger.info(f"{path} is not writable, or others can write to it: kernels are compiled for this process only.")
    with tempfile.TemporaryDirectory(prefix="small4-") as private:
        yield Path(private)


def _only_ours(path: Path) -> bool:
    """Whether nobody but this user and root can change what lies in a folder, or put another one in its place."""
    mine = path.lstat()
    if not stat.S_ISDIR(mine.st_mode) or mine.st_uid != os.geteuid() or mine.st_mode & 0o077:
        return False
    for parent in path.resolve().parents:
        info = parent.stat()
        open_to_others = info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX
        if open_to_others or info.st_uid not in (0, os.geteuid()):
            return False
    return True
