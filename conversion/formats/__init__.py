"""Stored formats: how a checkpoint stores its numbers, one small reader for each.

Three formats are *held*: a folder of ours keeps their codes and scales bit for bit, and `from_pretrained` computes from
them. This is how our layout (and the published transformers layout, for FP8) names and shapes them. `[out, in]` is the
shape of one linear weight. In a fused tensor of experts, `P` is `mlp.experts.gate_up_proj` (h = 2 matrices an expert:
gate rows, then up rows) or `mlp.experts.down_proj` (h = 1), and r is the number of rows of one matrix.

| held | linear `X` | fused experts `P` | value |
|---|---|---|---|
| fp8 | `X.weight` F8_E4M3 [out, in] | `P` [E, h r, in] | code * scale |
| | `X.weight_scale_inv`: one, [] or [1]; each row, [out, 1]; 128 x 128 blocks, [ceil(out / 128), ceil(in / 128)] | `P_scale_inv`: one a matrix, [E, h, 1] ([E, 1, 1]: gate and up share it); each row, [E, h r, 1]; blocks, [E, h ceil(r / 128), ceil(in / 128)] | |
| | `X.activation_scale` [] or [1], optional | `P_activation_scale` [E, 2] or [E] | static scale of the input |
| nvfp4 | `X.weight_packed` U8 [out, in / 2], low nibble = even column | `P_packed` [E, h r, in / 2] | e2m1 * scale / global |
| | `X.weight_scale` F8_E4M3 [out, in / 16] | `P_scale` [E, h r, in / 16] | |
| | `X.weight_global_scale` F32 [1], a divisor | `P_global_scale` [E, h] | |
| | `X.input_global_scale` F32 or BF16 [1], optional, a divisor | `P_input_global_scale` [E, h] | scale of the input |
| int4 | `X.weight_packed` I32 [out, in / 8], lowest nibble first | `P_packed` [E, h r, in / 8] | (code - zero) * scale |
| | `X.weight_scale` [out, in / group] | `P_scale` [E, h r, in / group] | |
| | `X.weight_zero_point` I32 [ceil(out / 8), in / group], 8 rows in one, optional | `P_zero_point` [E, h ceil(r / 8), in / group] | no tensor: zero = 8 |

int4 codes and zeros are 0 to 15; the group is `in` divided by the columns of the scale. The names of nvfp4 and int4 are
those of compressed-tensors (`nvfp4-pack-quantized`, `pack-quantized`), and `config.json` says so in its
`quantization_config`, as params.json of the NVFP4 release does; `weight_shape`, which compressed-tensors stores beside
int4, is not stored: the configuration knows it.
"""
