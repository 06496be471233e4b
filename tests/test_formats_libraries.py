"""The slow encoders of `derivatives.py` against the libraries that define the formats, where those are installed."""

from pathlib import Path

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import run

WIDE = {"q_lora_rank": 64, "kv_lora_rank": 64, "v_head_dim": 16, "moe": {"expert_hidden_dim": 64}}


def matrix(out: int, inner: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, inner, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 32), (3, 32)])
@pytest.mark.parametrize("out", [48, 36])
def test_packed_integers_of_compressed_tensors(bits: int, group: int, symmetric: bool, out: int) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    parts, plain = d.compressed_int(group, bits, symmetric, matrix(out, 256))
    numbers = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=numbers)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    assert torch.equal(compressor.decompress(parts, scheme)["weight"], plain.bfloat16())
    codes, _, zeros = d.grouped(matrix(out, 256), group, bits, symmetric, torch.bfloat16)
    offset = 2 ** (bits - 1)
    assert torch.equal(pack_to_int32((codes - offset).to(torch.int8), bits), parts["weight_packed"])
    if not symmetric:
        again = pack_to_int32((zeros - offset).to(torch.int8), bits, packed_dim=0)
        assert torch.equal(again, parts["weight_zero_point"])


def test_nvfp4_of_compressed_tensors() -> None:
    """It divides the scale first, we round the exact product once: equal, but for the last bit of a few numbers."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    parts, plain = d.nvfp4(matrix(96, 256))
    numbers = QuantizationArgs(num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16)
    scheme = QuantizationScheme(targets=["Linear"], weights=numbers)
    theirs = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized").decompress(parts, scheme)["weight"]
    assert theirs.dtype == torch.bfloat16
    gap = (theirs.view(torch.int16).int() - plain.view(torch.int16).int()).abs()
    assert gap.max() <= 1
    assert (gap > 0).float().mean() < 1e-3


@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_fp8_of_compressed_tensors(strategy: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    parts, plain = d.fp8(strategy, matrix(200, 300))
    parts["weight_scale"] = parts.pop("weight_scale_inv", parts.get("weight_scale"))
    structure = [128, 128] if strategy == "block" else None
    numbers = QuantizationArgs(num_bits=8, type="float", strategy=strategy, block_structure=structure)
    scheme = QuantizationScheme(targets=["Linear"], weights=numbers)
    theirs = BaseCompressor.get_value_from_registry("float-quantized").decompress(parts, scheme)["weight"]
    assert torch.equal(theirs.bfloat16(), plain.bfloat16())


def test_awq_of_compressed_tensors() -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    parts, plain = d.awq(32, matrix(48, 128))
    converter = AutoAWQConverter(bits=4, group_size=32)
    theirs = converter.process({f"layer.{ending}": part for ending, part in parts.items()})
    numbers = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=numbers)
    stored = {name.removeprefix("layer."): part for name, part in theirs.items()}
    stored["weight_scale"] = stored["weight_scale"].float()
    found = BaseCompressor.get_value_from_registry("pack-quantized").decompress(stored, scheme)["weight"]
    assert torch.equal(found, plain)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block", [64, 128])
def test_bitsandbytes(kind: str, double: bool, block: int) -> None:
    """Our encoder's bytes give its numbers in the library; the library's own bytes are read by the next test."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import QuantState, dequantize_4bit

    parts, plain = d.bitsandbytes(kind, double, matrix(48, 128), block)
    state = {name: part for name, part in parts.items() if name != "weight"}
    state = QuantState.from_dict(state, device=torch.device("cpu"))
    found = dequantize_4bit(parts["weight"], state)
    assert found.dtype == torch.bfloat16
    gap = (found.view(torch.int16).int() - plain.bfloat16().view(torch.int16).int()).abs()
    assert gap.max() <= 1
    assert (gap > 0).float().mean() < 0.01


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_what_bitsandbytes_writes_is_read(tmp_path: Path, kind: str, double: bool) -> None:
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    def encode(tensor: torch.Tensor) -> d.Encoded:
        codes, state = quantize_4bit(tensor, quant_type=kind, compress_statistics=double, blocksize=64)
        parts = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
        return parts | {"weight": codes}, dequantize_4bit(codes, state)

    p = rc.params(**WIDE)  # its CPU kernel is wrong where blocks reach over rows
    stored, plain = d.derive(p, rc.weights(p), encode)
    d.write_folder(tmp_path / "hf", p, stored, d.BITS4)
    run(tmp_path / "hf", tmp_path / "out", to="mistral")
    found = rc.read_all(tmp_path / "out")
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=2**-7, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_mlx(bits: int, group: int) -> None:
    mx = pytest.importorskip("mlx.core")
    parts, plain = d.mlx(group, bits, matrix(48, 192))
    given = [mx.array(parts["weight"].numpy()), *(mx.array(parts[k].float().numpy()) for k in ("scales", "biases"))]
    assert torch.equal(torch.tensor(mx.dequantize(*given, group_size=group, bits=bits).tolist()), plain)
