"""The kernels for ARM processors, compiled for one and run by an emulator. Skipped without `aarch64-linux-gnu-gcc` and
`qemu-aarch64`.
"""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import stored_cases as cases
import torch

from modeling_small4 import stored_kernels, stored_native
from modeling_small4.stored_weights import StoredWeight

COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
HEADER = struct.Struct("9qd4q")
MAIN = r"""
#include <stdio.h>

static void *taken(int64_t bytes) {  // from standard input
    void *memory = malloc((size_t)bytes + 1);
    if (fread(memory, 1, (size_t)bytes, stdin) != (size_t)bytes) exit(2);
    return memory;
}

int main(void) {  // the expanded weight, then the product
    struct {
        int64_t form, scale_type, type, rows, columns, tokens, row_shift, column_shift, groups;
        double divisor;
        int64_t bytes[4];
    } h;
    start();
    if (fread(&h, sizeof h, 1, stdin) != 1) return 2;
    Job job = {.form = h.form, .scale_type = h.scale_type, .rows = h.rows, .columns = h.columns};
    job.row_shift = h.row_shift;
    job.codes = taken(h.bytes[0]), job.scale = taken(h.bytes[1]);
    job.zeros = taken(h.bytes[2]), job.inputs = taken(h.bytes[3]);
    if (!h.bytes[2]) job.zeros = NULL;
    job.code_stride = h.bytes[0] / h.rows, job.scale_stride = job.zero_stride = h.groups, job.input_stride = h.columns;
    job.column_shift = h.column_shift, job.divisor = h.divisor;
    for (int expands = 1; expands >= 0; expands--) {
        job.type = expands ? BFLOAT16 : h.type;
        job.tokens = expands ? -1 : h.tokens;
        job.output_stride = expands ? h.columns : h.rows;
        size_t count = (size_t)(expands ? h.rows * h.columns : h.tokens * h.rows), size = job.type == FLOAT32 ? 4 : 2;
        job.outputs = calloc(count, size);
        if (run(&job, 1, 1, NULL) != 1) return 3;
        fwrite(job.outputs, size, count, stdout);
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not COMPILER or not EMULATOR:
        pytest.skip("no compiler and emulator for ARM")
    folder = tmp_path_factory.mktemp("neon")
    (folder / "main.c").write_text(stored_native.VARIANTS["neon"].source + MAIN)
    options = [*(o for o in stored_native.OPTIONS if o not in ("-fPIC", "-shared")), "-static", "-DPOISON"]
    subprocess.run([COMPILER, *options, folder / "main.c", "-o", folder / "main"], check=True)
    return folder / "main"


def raw(tensor: torch.Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes()


def emulated(program: Path, weight: StoredWeight, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The expanded weight and the product, as an ARM processor computes them."""
    form, scale, scale_type, zeros, row_shift, column_shift, divisor = stored_kernels._form(weight)
    parts = [raw(part) for part in (weight.codes, scale, zeros, inputs)]
    sizes = (weight.rows, weight.columns, len(inputs), row_shift, column_shift, scale.shape[1], divisor)
    header = HEADER.pack(form, scale_type, stored_kernels.TYPES[inputs.dtype], *sizes, *map(len, parts))
    done = subprocess.run(
        [str(EMULATOR), str(program)], input=header + b"".join(parts), capture_output=True, check=True
    )
    split = 2 * weight.rows * weight.columns
    whole = torch.frombuffer(bytearray(done.stdout[:split]), dtype=torch.bfloat16)
    found = torch.frombuffer(bytearray(done.stdout[split:]), dtype=inputs.dtype)
    return whole.view(weight.rows, weight.columns), found.view(len(inputs), weight.rows)


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize(("tokens", "dtype"), [(1, torch.float32), (3, torch.bfloat16), (29, torch.bfloat16)])
def test_on_arm(program: Path, form: str, tokens: int, dtype: torch.dtype) -> None:
    for rows, columns in [(3, 128), (150, 384)]:
        weight = cases.stored(form, rows, columns)
        inputs = torch.randn(tokens, columns).to(dtype)
        whole, found = emulated(program, weight, inputs)
        assert torch.equal(whole, weight.expand())
        numbers = whole.double()
        exact, size = inputs.double() @ numbers.T, inputs.double().abs() @ numbers.abs().T
        rounding = exact.abs() * (2**-8 if dtype == torch.bfloat16 else 0)
        assert bool(((found.double() - exact).abs() <= size * 2**-21 + rounding + 2**-25).all())
