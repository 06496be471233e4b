"""The one table of what people store this model in: how it is recognized, what becomes of it, and what is refused with
which advice.

The guide's table is made from it (`python -m small4_conversion.formats.table`), a test asks that every row has its
test, and errors take their advice from it. Knows no tensors.
"""

from typing import NamedTuple

from modeling_small4.files_reading import shown

CODES, GROUPS, NUMBERS = "codes kept", "4-bit groups of equal value", "expanded to bfloat16"
DIRECT, CONVERT = "opens as stored", "`small4 convert` first"


class Row(NamedTuple):
    """One format. kept: what `--dtype keep` makes of it; opens: what `from_pretrained` does; test: the one that has it,
    as file::test.
    """

    name: str
    marks: str
    kept: str
    opens: str
    library: str
    test: str


ROWS = (
    Row("Mistral raw, BF16", "`params.json`, `consolidated*.safetensors`", "bit for bit", CONVERT, "transformers",
        "test_conversion.py::test_raw_to_ours_to_raw_is_bit_exact"),
    Row("Mistral raw, FP8", "`qscale_weight`; `quantization` in "
        "params.json", CODES, CONVERT, "transformers", "test_conversion.py::test_raw_to_ours_to_raw_is_bit_exact"),
    Row("Mistral raw, NVFP4", "`weight_packed` U8; `quantization_config` in "
        "params.json", CODES, CONVERT, "compressed-tensors",
        "test_conversion_quantized.py::test_the_nvfp4_release_is_kept_bit_for_bit"),
    Row("transformers, BF16, fused "
        "experts", "`mlp.experts.gate_up_proj`", "bit for bit", DIRECT, "transformers",
        "test_conversion.py::test_published_plain_folder"),
    Row("transformers, BF16, one tensor for each "
        "expert", "`mlp.experts.0.gate_proj.weight`", "bit for bit", DIRECT, "transformers",
        "test_unfused_loading.py::test_plain_weights"),
    Row("transformers, FP8 per tensor", "`weight_scale_inv` of one number, "
        "`gate_up_proj_scale_inv`", CODES, DIRECT, "transformers",
        "test_conversion_quantized.py::test_published_fp8_folder_loads_with_expert_scales"),
    Row("FP8 in blocks of 128 x 128", "`weight_scale_inv` of blocks, "
        "`weight_block_size`", CODES, DIRECT, "compressed-tensors", "test_formats_kept.py::test_codes_are_kept[fp8 "
            "block]"),
    Row("FP8-dynamic, per channel", "`weight_scale` [out, 1], "
        "float-quantized", CODES, DIRECT, "compressed-tensors", "test_formats_kept.py::test_codes_are_kept[fp8 "
            "dynamic]"),
    Row("NVFP4 in transformers' names", "`weight_packed` U8, `weight_global_scale`, "
        "nvfp4-pack-quantized", CODES, DIRECT, "compressed-tensors",
        "test_formats_kept.py::test_codes_are_kept[nvfp4]"),
    Row("W4A16 of compressed-tensors", "`weight_packed` I32, pack-quantized, symmetric or with "
        "`weight_zero_point`", CODES, DIRECT, "compressed-tensors",
        "test_formats_kept.py::test_codes_are_kept[w4a16]"),
    Row("W8A16, W8A8 of compressed-tensors", "`weight_packed` of 8 bits; I8 with "
        "`weight_scale`", NUMBERS, CONVERT, "compressed-tensors",
        "test_formats_expanded.py::test_expanded_numbers[w8a8]"),
    Row("NVFP4 of ModelOpt", "`weight` U8, `weight_scale_2`", NUMBERS, CONVERT, "compressed-tensors",
        "test_formats_expanded.py::test_expanded_numbers[modelopt]"),
    Row("GPTQ", "`qweight`, `qzeros`, `g_idx`; versions 1 and 2", f"{GROUPS}; with act-order or other widths "
        f"{NUMBERS}", CONVERT, "AutoGPTQ",
            "test_formats_expanded.py::test_gptq_and_awq_become_4_bit_groups_of_equal_numbers[gptq]"),
    Row("AWQ", "`qweight` along the outputs, version "
        "gemm", GROUPS, CONVERT, "compressed-tensors",
        "test_formats_expanded.py::test_gptq_and_awq_become_4_bit_groups_of_equal_numbers[awq]"),
    Row("bitsandbytes, 4 bits", "`quant_state.bitsandbytes__nf4`, `__fp4`, "
        "`absmax`", NUMBERS, CONVERT, "bitsandbytes", "test_formats_expanded.py::test_expanded_numbers[nf4]"),
    Row("bitsandbytes, 8 bits", "I8 with `SCB`", NUMBERS, CONVERT, "bitsandbytes",
        "test_formats_expanded.py::test_expanded_numbers[llm.int8]"),
    Row("MLX, 2 to 8 bits", "`scales`, `biases`, `switch_mlp`; mode "
        "affine", NUMBERS, CONVERT, "mlx, mlx-lm", "test_formats_mlx.py::test_every_width_is_read"),
    Row("GGUF", "`*.gguf`, vision in `*mmproj*.gguf`", NUMBERS, CONVERT, "gguf", "test_formats_gguf.py::test_types"),
    Row("official EAGLE draft", "`eagle_linear.weight`", "as bfloat16, FP8 expanded", "`generate(draft=...)` opens "
        "it", "-", "test_drafts_eagle.py::test_convert_and_plan_know_the_official_draft"),
)  # fmt: skip

_FOUR = "nearest is 4 bits as compressed-tensors (llm-compressor), GPTQ or AWQ"
# quant_method of a configuration -> its name and the nearest format that is read
REFUSED = {
    "exl2": ("EXL2", "nearest is GPTQ or GGUF"),
    "exl3": ("EXL3", "nearest is GPTQ or GGUF"),
    "auto-round": ("AutoRound", "save it with AutoRound's format 'llm_compressor', 'auto_gptq' or 'auto_awq'"),
    "intel/auto-round": ("AutoRound", "save it with AutoRound's format 'llm_compressor', 'auto_gptq' or 'auto_awq'"),
    "torchao": ("torchao", "convert the unquantized model, and load it with weight_only()"),
    "fbgemm_fp8": ("FBGEMM FP8", "nearest is FP8-dynamic of compressed-tensors"),
    "mxfp4": ("MXFP4", "nearest is NVFP4"),
    "mxfp8": ("MXFP8", "nearest is FP8 in blocks"),
    "hqq": ("HQQ", _FOUR),
    "quanto": ("Quanto", _FOUR),
    "aqlm": ("AQLM", _FOUR),
    "vptq": ("VPTQ", _FOUR),
    "spqr": ("SpQR", _FOUR),
    "higgs": ("HIGGS", _FOUR),
    "eetq": ("EETQ", "nearest is FP8"),
    "quark": ("Quark", _FOUR),
    "fp_quant": ("FP-Quant", "nearest is NVFP4"),
    "bitnet": ("BitNet", _FOUR),
    "sinq": ("SINQ", _FOUR),
    "omniquant": ("OmniQuant", _FOUR),
}


def refusal(method: object) -> str:
    """A sentence about a way of quantizing that is not read: its name, and the nearest one that works."""
    name, advice = REFUSED.get(
        str(method).lower(), (shown(method), "nearest are FP8, NVFP4 and 4 bits as compressed-tensors, GPTQ or AWQ")
    )
    return f"{name} is not read; {advice}"


def markdown() -> str:
    """The rows as the guide shows them."""
    lines = [
        "| format | recognized by | `--dtype keep` | `from_pretrained` | checked against |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {row.name} | {row.marks} | {row.kept} | {row.opens} | {row.library} |" for row in ROWS]
    names = sorted({name for name, _ in REFUSED.values()})
    return "\n".join(
        [
            *lines,
            "",
            f"Refused by name, with the nearest format that works: {', '.join(names)}; pickles are never opened.",
        ]
    )


if __name__ == "__main__":
    print(markdown())
