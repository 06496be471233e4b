"""Compiled kernels for stored weights: every set of instructions against float64 on odd shapes, and what happens
without a compiler.
"""

import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import stored_cases as cases
import torch

from modeling_small4 import stored_kernels, stored_native
from modeling_small4.stored_experts import Small4StoredExperts
from modeling_small4.stored_layers import Part
from modeling_small4.stored_weights import Fp8Weight, StoredWeight

SHAPES = [(1, 32), (3, 128), (130, 384), (33, 1184), (5, 2176), (150, 1024)]
WARNED = "multiplied by torch alone"


@pytest.fixture(params=list(stored_native.VARIANTS))
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> stored_native.Library:
    """A library whose fresh memory is full of NaN."""
    variant = stored_native.VARIANTS[request.param]
    if not stored_native.runs_here(variant):
        pytest.skip(f"this processor has no {variant.name}")
    library = stored_native.load(variant, "-DPOISON")
    monkeypatch.setattr(stored_kernels, "library", lambda: library)
    return library


def fits(form: str, columns: int) -> bool:
    group = 32 if form == "int4 zeros" else int(form.split()[1]) if form.startswith("int4") else 1
    return columns % group == 0


def assert_product(weight: StoredWeight, inputs: torch.Tensor, found: torch.Tensor) -> None:
    """Equal to float64 up to the error of sums in float32, and one rounding to the dtype of the result."""
    numbers = weight.expand().double()
    exact, size = inputs.double() @ numbers.T, inputs.double().abs() @ numbers.abs().T
    assert found.dtype == inputs.dtype
    assert found.shape == exact.shape
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 0}[inputs.dtype]
    assert bool(((found.double() - exact).abs() <= size * 2**-21 + exact.abs() * rounding + 2**-25).all())


@pytest.mark.parametrize("form", cases.FORMS)
def test_expanded_numbers_are_equal(kernels: stored_native.Library, form: str) -> None:
    for rows, columns in SHAPES:
        if fits(form, columns):
            weight = cases.stored(form, rows, columns)
            assert torch.equal(stored_kernels._expanded(weight, kernels), weight.expand())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", cases.FORMS)
def test_products_on_odd_shapes(
    kernels: stored_native.Library, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_kernels, "fused_tokens", lambda *_: sys.maxsize)
    for rows, columns in SHAPES:
        for tokens in (0, 1, 2, 5, 11, 12, 17, 69):
            if fits(form, columns):
                weight = cases.stored(form, rows, columns)
                inputs = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(dtype)
                assert_product(weight, inputs, stored_kernels.product(weight, inputs))


@pytest.mark.parametrize("form", ["fp8 blocks", "nvfp4", "int4 zeros"])
def test_more_tokens_than_one_pass(kernels: stored_native.Library, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_kernels, "fused_tokens", lambda *_: sys.maxsize)
    weight = cases.stored(form, 300, 320)  # rows of several panels, and of several blocks
    inputs = torch.randn(2, 1100, 320, dtype=torch.bfloat16)[0, ::2][:529]
    assert_product(weight, inputs, stored_kernels.product(weight, inputs))


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
@pytest.mark.parametrize("columns", [16, 48, 80, 1040])
def test_last_columns(kernels: stored_native.Library, form: str, columns: int) -> None:
    for tokens in (1, 3, 20):
        weight, inputs = cases.stored(form, 9, columns), torch.randn(tokens, columns)
        assert_product(weight, inputs, stored_kernels.product(weight, inputs))


def test_many_weights_at_once_and_inputs_in_any_layout(kernels: stored_native.Library) -> None:
    weights = [cases.stored(form, 40 + seed, 256, seed) for seed, form in enumerate(cases.FORMS)]
    wide = torch.randn(3, 600, dtype=torch.bfloat16)
    inputs = [wide[:, :256], wide[:, 300:556], torch.randn(256, 2, dtype=torch.bfloat16).T] * len(weights)
    pairs = list(zip(weights, inputs, strict=False))
    found = stored_kernels.products([weight for weight, _ in pairs], [x for _, x in pairs])
    for (weight, x), out in zip(pairs, found, strict=True):
        assert_product(weight, x, out)


def test_a_code_that_is_no_number(kernels: stored_native.Library) -> None:
    weight = cases.stored("fp8", 8, 128)
    weight.codes.view(torch.uint8)[2, 5], weight.codes.view(torch.uint8)[3, 6] = 0x7F, 0xFF
    for tokens in (1, 4, 20):
        found = stored_kernels.product(weight, torch.ones(tokens, 128))
        assert found.isnan().any(0).tolist() == [row in (2, 3) for row in range(8)]


@pytest.mark.parametrize("size", [0.0, -0.5, 2.0**-130, 2.0**115])
@pytest.mark.parametrize("form", ["fp8", "fp8 rows", "fp8 blocks"])
def test_unusual_scales(kernels: stored_native.Library, form: str, size: float) -> None:
    weight = cases.stored(form, 150, 160)
    assert isinstance(weight, Fp8Weight)
    weight.scale[-1, -1] = size
    assert torch.equal(stored_kernels._expanded(weight, kernels), weight.expand())
    inputs = torch.full((15, 160), 2.0**-20).cumsum(0)
    for tokens in (1, 15):
        assert_product(weight, inputs[:tokens], stored_kernels.product(weight, inputs[:tokens]))


def test_threads(kernels: stored_native.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many callers at once, each with several threads of its own."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    weights = [cases.stored("nvfp4", 2048, 512, seed) for seed in range(4)]
    inputs = [torch.randn(tokens, 512) for tokens in (1, 3, 30, 70)]
    alone = [stored_kernels.product(*pair) for pair in zip(weights, inputs, strict=True)]
    found: list[list[torch.Tensor]] = [[] for _ in weights]

    def repeat(i: int) -> None:
        found[i].extend(stored_kernels.product(weights[i], inputs[i]) for _ in range(20))

    callers = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(out, alone[i]) for i, outs in enumerate(found) for out in outs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork(kernels: stored_native.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    weight, inputs = cases.stored("fp8", 2048, 512), torch.randn(1, 512)
    before = stored_kernels.product(weight, inputs)
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(stored_kernels.product(weight, inputs), before) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing compiled yet, and a cache of our own."""
    monkeypatch.delenv(stored_native.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stored_native._library.cache_clear()
    yield tmp_path / "cache" / "small4" / "kernels"
    stored_native._library.cache_clear()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels for this processor, compiled once without much optimization."""
    file = tmp_path_factory.mktemp("compiled") / "kernels.so"
    variant = stored_native._variant("auto")
    command = [*stored_native._compiler(), *stored_native.OPTIONS, *variant.options, "-O1"]
    stored_native._compile(file, command, variant.source)
    return file


@pytest.fixture
def compiler(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that has its result at hand."""
    path = tmp_path / "quick-cc"
    monkeypatch.setenv("CC", script(path, f'for file; do :; done; cp "{compiled}" "$file"'))
    return path


def assert_torch_does_it() -> None:
    weight, inputs = cases.stored("nvfp4"), torch.randn(2, 256)
    assert_product(weight, inputs, stored_kernels.product(weight, inputs))


def test_without_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(stored_native.shutil, "which", lambda *_: None)
    monkeypatch.setattr(stored_native.importlib.util, "find_spec", lambda *_: None)
    assert_torch_does_it()
    assert_torch_does_it()
    assert [WARNED in record.message and "no C compiler" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("text", ["echo 'cannot do that' >&2; exit 1", "exit 0", 'for a; do :; done; echo junk > "$a"'])
def test_broken_compiler(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv("CC", script(tmp_path / "broken-cc", text))
    assert_torch_does_it()
    assert WARNED in caplog.text
    assert ("cannot do that" in caplog.text) == ("cannot" in text)


def test_compiler_that_is_not_there(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert_torch_does_it()
    assert "/nowhere/cc" in caplog.text


def test_cache_is_private_and_used_again(fresh: Path, compiler: Path) -> None:
    assert stored_native.library() is not None
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    (file,) = fresh.iterdir()
    made = file.stat().st_mtime_ns
    stored_native._library.cache_clear()
    script(compiler, "exit 1")
    assert stored_native.library() is not None
    assert [file.stat().st_mtime_ns] == [made]


@pytest.mark.usefixtures("compiler")
def test_damaged_cache(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stored_native, "_compile", lambda path, *_: path.write_bytes(b"damaged"))
        assert stored_native.library() is None
    stored_native._library.cache_clear()
    assert stored_native.library() is not None
    (file,) = fresh.iterdir()
    assert len(file.read_bytes()) > 100


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("mode", [0o500, 0o777, 0o770])
def test_cache_that_is_not_ours_alone_is_not_used(fresh: Path, mode: int) -> None:
    fresh.mkdir(parents=True)
    fresh.chmod(mode)
    if mode == 0o500 and not os.geteuid():
        pytest.skip("root can write anywhere")
    assert stored_native.library() is not None
    assert list(fresh.iterdir()) == []


@pytest.mark.usefixtures("compiler")
def test_cache_that_is_a_file(fresh: Path) -> None:
    fresh.parent.mkdir(parents=True)
    fresh.write_text("in the way")
    assert stored_native.library() is not None


def test_variable(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stored_native.VARIABLE, "off")
    assert stored_native.library() is None
    assert_torch_does_it()
    monkeypatch.setenv(stored_native.VARIABLE, "fast")
    with pytest.raises(ValueError, match="choose from auto, off, avx512_bf16"):
        stored_native.library()


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_experts_together_and_one_by_one(kernels: stored_native.Library, tokens: int) -> None:
    """With a gradient asked for, experts are multiplied one by one."""
    shapes = {"gate_up_proj": (4, 512, 128), "down_proj": (4, 128, 256)}
    parts = {}
    for name, (experts, rows, columns) in shapes.items():
        weights = [cases.stored("fp8", rows, columns, seed) for seed in range(experts)]
        parts[name] = torch.stack([weight.codes for weight in weights])
        parts[name + "_scale_inv"] = torch.full((experts, 1, 1), 0.01)
    module = Small4StoredExperts(
        4, torch.nn.SiLU(), {name: Part(tuple(part.shape), part.dtype) for name, part in parts.items()}
    )
    for name, part in parts.items():
        setattr(module, name, torch.nn.Parameter(part, requires_grad=False))
    hidden = torch.randn(tokens, 128)
    indices, shares = torch.rand(tokens, 4).topk(2).indices, torch.rand(tokens, 2)
    with torch.no_grad():
        together = module(hidden, indices, shares)
    alone = module(hidden.requires_grad_(), indices, shares)
    torch.testing.assert_close(together, alone.detach())
    alone.sum().backward()
    assert hidden.grad is not None
