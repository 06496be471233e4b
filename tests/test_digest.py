"""What is measured of one weight in pieces of a few rows, against plain arithmetic on all of its numbers."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small4_conversion.checkpoint import Reader, read_headers
from small4_conversion.digest import Measured, Scales, measure
from small4_conversion.formats import values
from small4_conversion.formats.fp8 import Fp8
from small4_conversion.formats.values import Part, Plain, Values

ROWS, COLUMNS = 23, 9


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "STEP", 4 * COLUMNS)


def measured(value: Values) -> Measured:
    with Reader() as reader:
        return measure(value, None, True, reader, rows=True)


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("narrow", "wrong"), [(0, []), (7, []), (ROWS, []), (0, [math.nan]), (0, [math.inf, -math.inf, math.nan])]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_numbers(tmp_path: Path, dtype: torch.dtype, narrow: int, wrong: list[float]) -> None:
    """The first `narrow` rows are bfloat16 numbers, whatever they are stored in. Some numbers are not finite."""
    numbers = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    numbers[:narrow] = numbers[:narrow].bfloat16().float()
    numbers[::3, 2] = 0
    numbers[5, : len(wrong)] = torch.tensor(wrong)
    numbers = numbers.to(dtype)
    save_file({"x": numbers}, tmp_path / "x.safetensors")
    found = measured(Plain((ROWS, COLUMNS), read_headers([tmp_path / "x.safetensors"])["x"]))
    good = numbers[numbers.isfinite()].double()
    assert (found.broken, found.zeros) == (len(wrong), float((numbers == 0).double().mean()))
    assert (found.least, found.most) == (float(good.min()), float(good.max()))
    assert found.rms == pytest.approx(float(good.square().mean().sqrt()))
    assert found.mean == pytest.approx(float(good.mean()))
    kind = torch.bfloat16 if dtype == torch.bfloat16 or narrow == ROWS else torch.float32
    assert (found.dtype, found.value) == (str(kind).removeprefix("torch."), sha256(numbers.to(kind)))
    assert found.rows == tuple(sha256(row.float())[:8] for row in numbers)


@pytest.mark.parametrize("zero", [[], [3], [0, 1, 2], [2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 7, 8, 21, 22], [20, 21, 22]])
def test_rows_of_zeros(tmp_path: Path, zero: list[int]) -> None:
    """They are counted over the ends of pieces, which are four rows."""
    numbers = torch.randn(ROWS, COLUMNS)
    numbers[zero] = 0
    save_file({"x": numbers}, tmp_path / "x.safetensors")
    found = measured(Plain((ROWS, COLUMNS), read_headers([tmp_path / "x.safetensors"])["x"]))
    runs = "".join("0" if row in zero else " " for row in range(ROWS)).split()
    assert (found.hole, found.alike) == (max(map(len, runs), default=0), False)


def test_rows_that_are_alike(tmp_path: Path) -> None:
    row = torch.randn(1, COLUMNS).expand(ROWS, -1)
    column = torch.randn(ROWS, 1).expand(-1, COLUMNS)
    last = row.clone()
    last[-1, -1] += 1
    for numbers, alike in ((row, True), (column, True), (last, False)):
        save_file({"x": numbers.contiguous()}, tmp_path / "x.safetensors")
        assert measured(Plain((ROWS, COLUMNS), read_headers([tmp_path / "x.safetensors"])["x"])).alike == alike


@pytest.mark.parametrize("broken", [0, 5, ROWS])
def test_scales(tmp_path: Path, broken: int) -> None:
    scale = torch.arange(ROWS)[:, None] / 8 - 1
    scale[:broken] = math.nan
    tensors = {"x": torch.ones(ROWS, COLUMNS).to(torch.float8_e4m3fn), "scale": scale}
    save_file(tensors, tmp_path / "x.safetensors")
    stored = read_headers([tmp_path / "x.safetensors"])
    found = measured(Fp8((ROWS, COLUMNS), stored["x"], Part.of(stored["x"]), Part.of(stored["scale"])))
    assert found.broken == broken * COLUMNS
    assert found.parts == {"codes": sha256(tensors["x"]), "scale": sha256(scale)}
    good = [float(each) for each in scale if each.isfinite()]
    ends = [min(good), max(good)] if good else [math.nan, math.nan]
    wanted = Scales(broken, sum(each < 0 for each in good), good.count(0), *ends)
    assert str(found.scales["scale"]) == str(wanted)
