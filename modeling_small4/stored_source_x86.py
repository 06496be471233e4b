"""C text of the kernels for stored weights: AVX-512. What it must define is used by `DRIVER` of `stored_source`."""

AVX512_DECODE = r"""
// Decodes 64 columns at a time into two registers of 32 bfloat16 numbers, in an order of its own.
#include <immintrin.h>
typedef uint16_t Number;  // what a weight is decoded to
typedef __m512i Part;
typedef __m512 Sum;
enum { BLOCK = 64, STEP = 32, TILE = 6, LANES = 16, UNIT = 2 };

typedef struct { Part parts[BLOCK / STEP]; } Decoded;
typedef struct { uint16_t values[16]; } Table;  // numbers of the 16 codes of a group
typedef struct { __m512i parts[4]; } Lookup;    // numbers of the 128 FP8 codes without sign

INLINE __m256i words(__m512 values) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(values);
#else
    __m512i bits = _mm512_castps_si512(values), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    bits = _mm512_mask_mov_epi32(bits, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
#endif
}

INLINE __m512i both(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }

INLINE void nvfp4_table(Table *table, float scale, float divisor) {
    __m512 values = _mm512_mul_ps(_mm512_loadu_ps(e2m1), _mm512_set1_ps(scale));
    _mm256_storeu_si256((__m256i *)table, words(_mm512_div_ps(values, _mm512_set1_ps(divisor))));
}

INLINE void int4_table(Table *table, float scale, float zero) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 values = _mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(zero)), _mm512_set1_ps(scale));
    _mm256_storeu_si256((__m256i *)table, words(values));
}

INLINE void fp8_lookup(Lookup *lookup, float scale) {
    __m512i all[4];
    for (int i = 0; i < 4; i++) {
        const __m512 factor = _mm512_set1_ps(scale);
        __m256i low = words(_mm512_mul_ps(_mm512_loadu_ps(e4m3 + 32 * i), factor));
        all[i] = both(low, words(_mm512_mul_ps(_mm512_loadu_ps(e4m3 + 32 * i + 16), factor)));
    }
#ifdef __AVX512VBMI__  // low bytes, then high bytes
    for (int i = 0; i < 2; i++) {
        lookup->parts[i] = both(_mm512_cvtepi16_epi8(all[2 * i]), _mm512_cvtepi16_epi8(all[2 * i + 1]));
        __m512i first = _mm512_srli_epi16(all[2 * i], 8), second = _mm512_srli_epi16(all[2 * i + 1], 8);
        lookup->parts[i + 2] = both(_mm512_cvtepi16_epi8(first), _mm512_cvtepi16_epi8(second));
    }
#else
    memcpy(lookup->parts, all, sizeof all);
#endif
}

INLINE Decoded decode_fp8(const Lookup *lookup, const uint8_t *codes) {
    const __m512i *t = lookup->parts;
#ifdef __AVX512VBMI__
    __m512i code = _mm512_loadu_si512(codes);
    __m512i low = _mm512_permutex2var_epi8(t[0], code, t[1]), high = _mm512_permutex2var_epi8(t[2], code, t[3]);
    high = _mm512_ternarylogic_epi32(high, code, _mm512_set1_epi8((char)0x80), 0x78);  // high ^ (code & 0x80)
    return (Decoded){{_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)}};
#else
    __m512i out[2];
    for (int i = 0; i < 2; i++) {
        __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)codes + i));
        __m512i small = _mm512_permutex2var_epi16(t[0], code, t[1]), large = _mm512_permutex2var_epi16(t[2], code, t[3]);
        small = _mm512_mask_mov_epi16(small, _mm512_test_epi16_mask(code, _mm512_set1_epi16(64)), large);
        out[i] = _mm512_ternarylogic_epi32(small, _mm512_slli_epi16(code, 8), _mm512_set1_epi16((short)0x8000), 0x78);
    }
    return (Decoded){{out[0], out[1]}};
#endif
}

// 32 columns. Each quarter of the register takes one of the four codes of a word. table: of both groups of 16 columns.
INLINE __m512i decode4_half(const uint8_t *codes, __m512i table) {
    const __m512i shift = _mm512_setr_epi64(0, 0, 0x0004000400040004, 0x0004000400040004, 0x0008000800080008,
                                            0x0008000800080008, 0x000c000c000c000c, 0x000c000c000c000c);
    const __m512i group = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0, 0x00100010, 0x00100010));
    __m512i code = _mm512_srlv_epi16(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)codes)), shift);
    code = _mm512_ternarylogic_epi32(code, _mm512_set1_epi16(15), group, 0xea);  // code & 15 | group
    return _mm512_permutexvar_epi16(code, table);
}

INLINE Decoded decode4(const uint8_t *codes, __m512i first, __m512i second) {
    return (Decoded){{decode4_half(codes, first), decode4_half(codes + 16, second)}};
}

INLINE int order(int form, int position) {  // the column that stands at a position among 64 decoded ones
    int half = position / 32, at = position % 32;
    if (form != FP8) return half * 32 + at % 8 * 4 + at / 8;
#ifdef __AVX512VBMI__
    return at / 8 * 16 + half * 8 + at % 8;
#else
    return position;
#endif
}
"""

AVX512_SUM = r"""
INLINE Decoded decode_nvfp4(const Table *tables, const uint8_t *scales, const uint8_t *codes) {
    const __m256i *t = (const __m256i *)tables;
    __m512i a = both(_mm256_loadu_si256(t + scales[0]), _mm256_loadu_si256(t + scales[1]));
    return decode4(codes, a, both(_mm256_loadu_si256(t + scales[2]), _mm256_loadu_si256(t + scales[3])));
}

INLINE __m512i twice(const Table *table) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)table)); }

INLINE Decoded decode_int4(const Table *first, const Table *second, const uint8_t *codes) {
    return decode4(codes, twice(first), twice(second));
}


INLINE Sum nothing(void) { return _mm512_setzero_ps(); }
INLINE float total(Sum sum) { return _mm512_reduce_add_ps(sum); }
INLINE Part load(const Number *numbers) { return _mm512_load_si512(numbers); }
INLINE void keep(Number *numbers, Part part) { _mm512_store_si512(numbers, part); }

#ifdef __AVX512BF16__
#define NARROW 1
INLINE Sum add_narrow(Sum sum, Part part, const uint16_t *inputs) {
    return _mm512_dpbf16_ps(sum, (__m512bh)part, (__m512bh)_mm512_load_si512(inputs));
}

INLINE void permute(const uint16_t *in, const uint16_t *places, void *out) {
    const __m512i a = _mm512_loadu_si512(in), b = _mm512_loadu_si512(in + 32);
    for (int i = 0; i < BLOCK; i += 32)
        _mm512_storeu_si512((uint16_t *)out + i, _mm512_permutex2var_epi16(a, _mm512_loadu_si512(places + i), b));
}
#endif

INLINE Part spread(const Number *pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return _mm512_set1_epi32(both);
}

// 16 x 16 numbers: words, then pairs, then quarters of registers change places.
INLINE void transpose(const float *in, int64_t stride, float *out) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(in + i * stride);
    for (int i = 0; i < 16; i++) {
        __m512 first = a[i / 2 * 2], second = a[i / 2 * 2 + 1];
        b[i] = i % 2 ? _mm512_unpackhi_ps(first, second) : _mm512_unpacklo_ps(first, second);
    }
    for (int i = 0; i < 16; i++) {
        __m512d first = _mm512_castps_pd(b[i / 4 * 4 + i % 4 / 2]), second = _mm512_castps_pd(b[i / 4 * 4 + i % 4 / 2 + 2]);
        a[i] = _mm512_castpd_ps(i % 2 ? _mm512_unpackhi_pd(first, second) : _mm512_unpacklo_pd(first, second));
    }
    for (int i = 0; i < 4; i++) {
        __m512 low[2], high[2];
        for (int j = 0; j < 2; j++) {
            low[j] = _mm512_shuffle_f32x4(a[8 * j + i], a[8 * j + 4 + i], 0x88);
            high[j] = _mm512_shuffle_f32x4(a[8 * j + i], a[8 * j + 4 + i], 0xdd);
        }
        _mm512_storeu_ps(out + i * 16, _mm512_shuffle_f32x4(low[0], low[1], 0x88));
        _mm512_storeu_ps(out + (i + 8) * 16, _mm512_shuffle_f32x4(low[0], low[1], 0xdd));
        _mm512_storeu_ps(out + (i + 4) * 16, _mm512_shuffle_f32x4(high[0], high[1], 0x88));
        _mm512_storeu_ps(out + (i + 12) * 16, _mm512_shuffle_f32x4(high[0], high[1], 0xdd));
    }
}

// The instruction that rounds to bfloat16 takes numbers less than normal ones for zeros.
INLINE int is_plain(float scale) { return scale == 0 || !(scale < 0x1p-100f && scale > -0x1p-100f); }

enum { PANELS_NARROW = 12, PANELS_WIDE = 12, VECTORS_NARROW = 4, VECTORS_WIDE = 2, KEPT_NARROW = 24, KEPT_WIDE = 16 };

// Inputs of the even places come first.
INLINE Sum add_wide(Sum sum, Part part, const float *inputs) {
    __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(part, 16));
    __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(part, _mm512_set1_epi32((int)0xffff0000)));
    return _mm512_fmadd_ps(odd, _mm512_load_ps(inputs + 16), _mm512_fmadd_ps(even, _mm512_load_ps(inputs), sum));
}

INLINE int wide_order(int position) { return position / 32 * 32 + 2 * (position % 16) + position % 32 / 16; }

typedef struct { __m512i first, second; } Natural;  // where the numbers of 64 columns stand

INLINE Natural natural_order(const int form) {
    uint16_t places[BLOCK];
    for (int i = 0; i < BLOCK; i++) places[order(form, i)] = (uint16_t)i;
    return (Natural){_mm512_loadu_si512(places), _mm512_loadu_si512(places + 32)};
}

INLINE void write_natural(const Natural natural, const Number *numbers, uint16_t *out) {
    const __m512i a = load(numbers), b = load(numbers + 32);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(a, natural.first, b));
    _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(a, natural.second, b));
}
"""

AVX2_DECODE = r"""
// Decodes 32 columns at a time into four registers of 8 bfloat16 numbers held as float32.
#include <immintrin.h>
typedef float Number;
typedef __m256 Part;
typedef __m256 Sum;
enum { BLOCK = 32, STEP = 8, TILE = 3, LANES = 8 };

typedef struct { Part parts[BLOCK / STEP]; } Decoded;
typedef struct { __m128i low, high; } Table;  // low and high bytes of the numbers of the 16 codes of a group
typedef struct { Table first, second; } Lookup;  // numbers of the codes 0 to 15, and of 16 to 31 less a power of two

INLINE __m256i rounded(__m256 values) {
    const __m256i bits = _mm256_castps_si256(values);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}

INLINE Table table(__m256 first, __m256 second) {
    const __m256i bytes = _mm256_set1_epi16(255), none = _mm256_set1_epi32(0x7fc0);
    __m256i a = _mm256_srli_epi32(rounded(first), 16), b = _mm256_srli_epi32(rounded(second), 16);
    a = _mm256_blendv_epi8(a, none, _mm256_castps_si256(_mm256_cmp_ps(first, first, _CMP_UNORD_Q)));
    b = _mm256_blendv_epi8(b, none, _mm256_castps_si256(_mm256_cmp_ps(second, second, _CMP_UNORD_Q)));
    __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    __m256i low = _mm256_and_si256(words, bytes), high = _mm256_srli_epi16(words, 8);
    __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xd8);
    return (Table){_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)};
}

INLINE void nvfp4_table(Table *out, float scale, float divisor) {
    const __m256 factor = _mm256_set1_ps(scale), by = _mm256_set1_ps(divisor);
    __m256 first = _mm256_div_ps(_mm256_mul_ps(_mm256_loadu_ps(e2m1), factor), by);
    *out = table(first, _mm256_div_ps(_mm256_mul_ps(_mm256_loadu_ps(e2m1 + 8), factor), by));
}

INLINE void int4_table(Table *out, float scale, float zero) {
    const __m256 factor = _mm256_set1_ps(scale), less = _mm256_set1_ps(zero);
    __m256 first = _mm256_sub_ps(_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), less);
    __m256 second = _mm256_sub_ps(_mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15), less);
    *out = table(_mm256_mul_ps(first, factor), _mm256_mul_ps(second, factor));
}

INLINE int order(int form, int position) { (void)form; return position % 8 / 4 * 16 + position / 8 * 4 + position % 4; }

// Low and high bytes of 32 bfloat16 numbers, as float32.
INLINE Decoded joined(__m256i low, __m256i high) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
    return (Decoded){{_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, first)), _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, first)),
                      _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, second)), _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, second))}};
}

// Whether all numbers of a scale are normal ones, so that those with other exponents follow from `second`.
INLINE int is_plain(float scale) { return scale > 0x1p-100f && scale < 0x1p100f; }

INLINE void fp8_lookup(Lookup *lookup, float scale) {
    const __m256 factor = _mm256_set1_ps(scale);
    lookup->first = table(_mm256_mul_ps(_mm256_loadu_ps(e4m3), factor), _mm256_mul_ps(_mm256_loadu_ps(e4m3 + 8), factor));
    lookup->second = table(_mm256_mul_ps(_mm256_loadu_ps(e4m3 + 16), factor), _mm256_mul_ps(_mm256_loadu_ps(e4m3 + 24), factor));
    lookup->second.high = _mm_sub_epi8(lookup->second.high, _mm_set1_epi8(1));
}

// Codes of 16 and more: the exponent's upper three bits are added to the number's.
INLINE Decoded decode_fp8(const Lookup *lookup, const uint8_t *codes) {
    const __m256i code = _mm256_loadu_si256((const __m256i *)codes), rest = _mm256_and_si256(code, _mm256_set1_epi8(127));
    const __m256i index = _mm256_and_si256(code, _mm256_set1_epi8(15)), none = _mm256_cmpeq_epi8(rest, _mm256_set1_epi8(127));
    const __m256i exponent = _mm256_and_si256(_mm256_srli_epi16(code, 4), _mm256_set1_epi8(7));
    const __m256i is_first = _mm256_cmpeq_epi8(exponent, _mm256_setzero_si256());
    const Table *a = &lookup->first, *b = &lookup->second;
    __m256i low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(b->low), index);
    __m256i high = _mm256_add_epi8(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(b->high), index), exponent);
    low = _mm256_blendv_epi8(low, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(a->low), index), is_first);
    high = _mm256_blendv_epi8(high, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(a->high), index), is_first);
    high = _mm256_or_si256(high, _mm256_or_si256(_mm256_sub_epi8(code, rest), _mm256_and_si256(none, _mm256_set1_epi8(127))));
    return joined(_mm256_or_si256(low, none), high);
}

INLINE Decoded decode4(const uint8_t *codes, __m256i low, __m256i high) {
    __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes));
    code = _mm256_and_si256(_mm256_or_si256(code, _mm256_slli_epi16(code, 4)), _mm256_set1_epi8(15));
    return joined(_mm256_shuffle_epi8(low, code), _mm256_shuffle_epi8(high, code));
}

INLINE Decoded decode_nvfp4(const Table *tables, const uint8_t *scales, const uint8_t *codes) {
    const Table *a = tables + scales[0], *b = tables + scales[1];
    return decode4(codes, _mm256_set_m128i(b->low, a->low), _mm256_set_m128i(b->high, a->high));
}

INLINE Decoded decode_int4(const Table *first, const Table *second, const uint8_t *codes) {
    (void)second;
    return decode4(codes, _mm256_broadcastsi128_si256(first->low), _mm256_broadcastsi128_si256(first->high));
}
"""

AVX2_SUM = r"""
INLINE Sum nothing(void) { return _mm256_setzero_ps(); }
INLINE Part load(const Number *numbers) { return _mm256_load_ps(numbers); }
INLINE void keep(Number *numbers, Part part) { _mm256_store_ps(numbers, part); }
INLINE Sum add_wide(Sum sum, Part part, const float *inputs) { return _mm256_fmadd_ps(part, _mm256_load_ps(inputs), sum); }

INLINE float total(Sum sum) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

INLINE Part spread(const Number *number) { return _mm256_broadcast_ss(number); }

enum { PANELS_NARROW = 12, PANELS_WIDE = 12, VECTORS_NARROW = 2, VECTORS_WIDE = 2, KEPT_NARROW = 12, KEPT_WIDE = 12 };
"""
