"""C text of the kernels for stored weights: AVX-512. What it must define is used by `DRIVER` of `stored_source`."""

AVX512_DECODE = r"""
// Decodes 64 columns at a time into two registers of 32 bfloat16 numbers, in an order of its own.
#include <immintrin.h>
typedef uint16_t Number;  // what a weight is decoded to
typedef __m512i Part;
typedef __m512 Sum;
enum { BLOCK = 64, STEP = 32, TILE = 6 };
#define MOST 6

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

INLINE __m256i int4_table(float scale, float zero) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return words(_mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(zero)), _mm512_set1_ps(scale)));
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

INLINE Decoded decode8(const uint8_t *codes, const Lookup *lookup) {
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

// a, b: tables of columns 0 to 31 and 32 to 63, one for each 16 columns.
INLINE Decoded decode4(const uint8_t *codes, __m512i a, __m512i b) {
    const __m512i group = _mm512_setr_epi64(0, 0, 0x0010001000100010, 0x0010001000100010, 0x0020002000200020,
                                            0x0020002000200020, 0x0030003000300030, 0x0030003000300030);
    __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)codes));
    __m512i even = _mm512_ternarylogic_epi32(code, _mm512_set1_epi16(15), group, 0xea);  // code & 15 | group
    __m512i odd = _mm512_or_si512(_mm512_srli_epi16(code, 4), group);
    return (Decoded){{_mm512_permutex2var_epi16(a, even, b), _mm512_permutex2var_epi16(a, odd, b)}};
}

INLINE int order(int form, int position) {  // the column that stands at a position among 64 decoded ones
    int half = position / 32, at = position % 32;
    if (form != FP8) return 2 * at + half;
#ifdef __AVX512VBMI__
    return at / 8 * 16 + half * 8 + at % 8;
#else
    return position;
#endif
}
"""

AVX512_SUM = r"""
INLINE Decoded decode(const Job *job, const State *state, const int form, int64_t row, int64_t column, const uint8_t *codes, const uint8_t *scales) {
    if (form == FP8) return decode8(codes, lookups_at(state, job, row) + (column >> job->column_shift));
    if (form == NVFP4) {
        const __m256i *t = (const __m256i *)state->tables;
        __m512i a = both(_mm256_loadu_si256(t + scales[0]), _mm256_loadu_si256(t + scales[1]));
        return decode4(codes, a, both(_mm256_loadu_si256(t + scales[2]), _mm256_loadu_si256(t + scales[3])));
    }
    int64_t second = column + 32 < job->columns ? column + 32 : column;
    __m512i a = _mm512_broadcast_i64x4(int4_table(scale_at(job, row, column), zero_at(job, row, column))), b = a;
    if (second >> job->column_shift != column >> job->column_shift)
        b = _mm512_broadcast_i64x4(int4_table(scale_at(job, row, second), zero_at(job, row, second)));
    return decode4(codes, a, b);
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
#endif

// Inputs of the even places come first.
INLINE Sum add_wide(Sum sum, Part part, const float *inputs) {
    __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(part, 16));
    __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(part, _mm512_set1_epi32((int)0xffff0000)));
    return _mm512_fmadd_ps(odd, _mm512_load_ps(inputs + 16), _mm512_fmadd_ps(even, _mm512_load_ps(inputs), sum));
}

INLINE int wide_order(int position) { return position / 32 * 32 + 2 * (position % 16) + position % 32 / 16; }

INLINE void write_natural(const Job *job, const Number *piece, int64_t count, uint16_t *out) {
    uint16_t index[64];
    for (int i = 0; i < 64; i++) index[order((int)job->form, i)] = (uint16_t)i;
    const __m512i first = _mm512_loadu_si512(index), second = _mm512_loadu_si512(index + 32);
    for (int64_t k = 0; k < count; k += 64) {
        __m512i a = _mm512_load_si512(piece + k), b = _mm512_load_si512(piece + k + 32);
        uint64_t left = count - k >= 64 ? ~0ull : (1ull << (count - k)) - 1;
        _mm512_mask_storeu_epi16(out + k, (__mmask32)left, _mm512_permutex2var_epi16(a, first, b));
        _mm512_mask_storeu_epi16(out + k + 32, (__mmask32)(left >> 32), _mm512_permutex2var_epi16(a, second, b));
    }
}
"""
