"""C text of the kernels for stored weights: NEON, which every 64-bit ARM processor has. See `DRIVER` of
`stored_source`.
"""

NEON_DECODE = r"""
// Decodes 16 columns at a time into four registers of 4 bfloat16 numbers held as float32.
#include <arm_neon.h>
typedef float Number;
typedef float32x4_t Part;
typedef float32x4_t Sum;
enum { BLOCK = 16, STEP = 4, TILE = 4, LANES = 4 };

typedef struct { Part parts[BLOCK / STEP]; } Decoded;
typedef struct { uint8x16_t low, high; } Table;  // low and high bytes of the numbers of the 16 codes of a group
typedef struct { float factor; } Lookup;

INLINE Table split(const float *values) {
    uint16_t words[16];
    for (int i = 0; i < 16; i++) words[i] = bfloat16(values[i]);
    uint8x16x2_t bytes = vld2q_u8((const uint8_t *)words);
    return (Table){bytes.val[0], bytes.val[1]};
}

INLINE void nvfp4_table(Table *out, float scale, float divisor) {
    float values[16];
    for (int code = 0; code < 16; code++) values[code] = e2m1[code] * scale / divisor;
    *out = split(values);
}

INLINE void int4_table(Table *out, float scale, float zero) {
    float values[16];
    for (int code = 0; code < 16; code++) values[code] = ((float)code - zero) * scale;
    *out = split(values);
}

// Codes are read as float16 numbers, which are 256 times less. One rounding of the bits would turn some NaN into zeros.
INLINE void fp8_lookup(Lookup *lookup, float scale) { lookup->factor = scale == scale ? 256 * scale : from_bits(0x7fc00000); }

INLINE Part rounded(float32x4_t values) {
    uint32x4_t bits = vreinterpretq_u32_f32(values), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    bits = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    return vreinterpretq_f32_u32(vandq_u32(bits, vdupq_n_u32(0xffff0000)));
}

INLINE Decoded decode_fp8(const Lookup *lookup, const uint8_t *codes) {
    uint8x16_t all = vld1q_u8(codes);
    const uint16x8_t halves[2] = {vshll_n_u8(vget_low_u8(all), 8), vshll_high_n_u8(all, 8)};
    const uint16x8_t none = vdupq_n_u16(0x3f80), is_none = vdupq_n_u16(0x7e00);
    Decoded out;
    for (int i = 0; i < 2; i++) {
        uint16x8_t code = vreinterpretq_u16_s16(vshrq_n_s16(vreinterpretq_s16_u16(halves[i]), 1));
        code = vandq_u16(code, vdupq_n_u16(0xbf80));
        code = vorrq_u16(code, vandq_u16(vceqq_u16(vandq_u16(code, none), none), is_none));
        float16x8_t values = vreinterpretq_f16_u16(code);
        out.parts[2 * i] = rounded(vmulq_n_f32(vcvt_f32_f16(vget_low_f16(values)), lookup->factor));
        out.parts[2 * i + 1] = rounded(vmulq_n_f32(vcvt_high_f32_f16(values), lookup->factor));
    }
    return out;
}

INLINE Decoded decode4(const Table *table, const uint8_t *codes) {
    uint8x8_t pairs = vld1_u8(codes), even = vand_u8(pairs, vdup_n_u8(15)), odd = vshr_n_u8(pairs, 4);
    uint8x16_t code = vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd));
    uint8x16_t low = vqtbl1q_u8(table->low, code), high = vqtbl1q_u8(table->high, code);
    const uint16x8_t zero = vdupq_n_u16(0);
    uint16x8_t first = vreinterpretq_u16_u8(vzip1q_u8(low, high)), second = vreinterpretq_u16_u8(vzip2q_u8(low, high));
    return (Decoded){{vreinterpretq_f32_u16(vzip1q_u16(zero, first)), vreinterpretq_f32_u16(vzip2q_u16(zero, first)),
                      vreinterpretq_f32_u16(vzip1q_u16(zero, second)), vreinterpretq_f32_u16(vzip2q_u16(zero, second))}};
}

INLINE Decoded decode_nvfp4(const Table *tables, const uint8_t *scales, const uint8_t *codes) { return decode4(tables + scales[0], codes); }
INLINE Decoded decode_int4(const Table *first, const Table *second, const uint8_t *codes) { (void)second; return decode4(first, codes); }

INLINE int order(int form, int position) { (void)form; return position; }
"""

NEON_SUM = r"""
INLINE Sum nothing(void) { return vdupq_n_f32(0); }
INLINE Part load(const Number *numbers) { return vld1q_f32(numbers); }
INLINE void keep(Number *numbers, Part part) { vst1q_f32(numbers, part); }
INLINE Sum add_wide(Sum sum, Part part, const float *inputs) { return vfmaq_f32(sum, part, vld1q_f32(inputs)); }
INLINE float total(Sum sum) { return vaddvq_f32(sum); }

INLINE Part spread(const Number *number) { return vld1q_dup_f32(number); }

enum { PANELS_NARROW = 12, PANELS_WIDE = 12, VECTORS_NARROW = 4, VECTORS_WIDE = 4, KEPT_NARROW = 24, KEPT_WIDE = 24 };

INLINE int is_plain(float scale) { (void)scale; return 1; }
"""
