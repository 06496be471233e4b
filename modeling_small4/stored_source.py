"""C text of the kernels for stored weights: what all processors share. Instructions are in `stored_source_x86`;
`stored_native` compiles.

Each row of a weight is decoded a block of columns at a time, in the order that suits the instructions; inputs are put
in that order first. Numbers are rounded to bfloat16 exactly as `StoredWeight.expand` does; sums are float32.
"""

COMMON = r"""
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define ROWS 4        // rows multiplied together
#define PIECE 512     // columns decoded at a time, so that they stay in the first cache
#define FEW 2         // up to so many tokens in bfloat16 are multiplied as soon as a block is decoded,
#define PAIR 2        // with so many rows at a time
#define AHEAD 4096    // bytes that codes are fetched before; the processor alone stops at the end of a page
#define TOKENS 64     // tokens whose sums are kept at a time
#define PANEL_ROWS 48 // rows and columns that are decoded at a time for many tokens; a multiple of all numbers of rows
#define PANEL 256     // whose sums fit the registers
#define PASS 512      // tokens that a decoded panel is multiplied with
#define CHUNK 131072  // bytes of codes that a thread takes at a time

enum { FP8, NVFP4, INT4 };
enum { FLOAT32, BFLOAT16, FLOAT16 };

typedef struct {
    const uint8_t *codes;
    int64_t code_stride;  // bytes
    const void *scale;
    int64_t scale_stride, scale_type;
    const int32_t *zeros;
    int64_t zero_stride;
    const void *inputs;
    int64_t input_stride;
    void *outputs;
    int64_t output_stride;
    int64_t form, type, rows, columns, tokens;  // tokens -1: expand into outputs instead
    int64_t row_shift, column_shift;            // 2 ** shift rows and columns share a scale
    double divisor;
    void *prepared;
    int64_t packs;  // inputs are packed for this job
} Job;

static float e4m3[256];
static const float e2m1[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};

INLINE float from_bits(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
INLINE uint32_t to_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

INLINE uint16_t bfloat16(float value) {  // to nearest, ties to even
    uint32_t bits = to_bits(value);
    return value != value ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float float16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x0400) return from_bits(sign | ((rest << 13) + (112u << 23)));
    return from_bits(sign | to_bits((float)rest * 0x1p-24f));
}

// The scale of a row's i-th group of columns.
INLINE float one_scale(const Job *job, int64_t row, int64_t i) {
    int64_t at = (row >> job->row_shift) * job->scale_stride + i;
    if (job->scale_type == FLOAT32) return ((const float *)job->scale)[at];
    uint16_t half = ((const uint16_t *)job->scale)[at];
    return job->scale_type == BFLOAT16 ? from_bits((uint32_t)half << 16) : float16(half);
}

// Scales of a row, for groups of columns.
INLINE void read_scales(const Job *job, int64_t row, int64_t count, float *restrict out) {
    int64_t at = (row >> job->row_shift) * job->scale_stride;
    const float *restrict whole = (const float *)job->scale + at;
    const uint16_t *restrict half = (const uint16_t *)job->scale + at;
    if (job->scale_type == FLOAT32) memcpy(out, whole, (size_t)count * sizeof(float));
    else if (job->scale_type == BFLOAT16) for (int64_t i = 0; i < count; i++) out[i] = from_bits((uint32_t)half[i] << 16);
    else for (int64_t i = 0; i < count; i++) out[i] = float16(half[i]);
}

INLINE void read_zeros(const Job *job, int64_t row, int64_t count, float *restrict out) {
    const int32_t *restrict eights = job->zeros + row / 8 * job->zero_stride;
    const int shift = 4 * (int)(row % 8);
    for (int64_t i = 0; i < count; i++) out[i] = (float)((uint32_t)eights[i] >> shift & 15);
}

// Groups of columns with scales of their own.
INLINE int64_t groups_of(const Job *job) { return ((job->columns - 1) >> job->column_shift) + 1; }

INLINE int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

void start(void) {
    for (int code = 0; code < 256; code++) {
        int exponent = code >> 3 & 15, mantissa = code & 7;
        float size = exponent ? from_bits((uint32_t)(exponent + 120) << 23 | (uint32_t)mantissa << 20) : (float)mantissa * 0x1p-9f;
        if ((code & 127) == 127) size = from_bits(0x7fc00000);
        e4m3[code] = code & 128 ? -size : size;
    }
}
"""

STATE = r"""
typedef struct {  // what one thread works with
    Number *piece;      // decoded columns, [ROWS, PIECE] or [PANEL_ROWS, PANEL]
    Sum *sums;          // [TOKENS, ROWS] or [PANEL_ROWS, groups of LANES tokens]
    Table *tables;      // for each scale of NVFP4
    Lookup *lookups;    // FP8: [PANEL_ROWS, groups of columns] where each row has its own scale, else [2, groups of columns]
    Table *own_tables;  // 4-bit groups: [PANEL_ROWS, groups of columns]
    float *scales, *zeros;  // of a row
    int64_t groups;
    const Job *tables_of;
    struct { const Job *job; int64_t row; } lookups_of[PANEL_ROWS];
} State;

INLINE int own_scale(const Job *job) { return job->row_shift == 0; }

// Where the scales of an FP8 row stand. Rows decoded in turn have slots of their own, or lie in two blocks at most.
INLINE int64_t lookup_slot(const Job *job, int64_t row, int64_t slot) {
    return own_scale(job) ? slot : row >> job->row_shift & 1;
}

// Make ready what decoding a row takes. slot: which of the rows that are decoded in turn.
INLINE void prepare_row(State *state, const Job *job, int64_t row, int64_t slot) {
    if (job->form == NVFP4 && state->tables_of != job) {
        for (int code = 0; code < 256; code++) nvfp4_table(state->tables + code, e4m3[code], (float)job->divisor);
        state->tables_of = job;
    }
    int64_t count = groups_of(job);
    if (job->form == INT4) {
        Table *tables = state->own_tables + slot * state->groups;
        read_scales(job, row, count, state->scales);
        if (job->zeros) read_zeros(job, row, count, state->zeros);
        if (job->zeros) for (int64_t i = 0; i < count; i++) int4_table(tables + i, state->scales[i], state->zeros[i]);
        else for (int64_t i = 0; i < count; i++) int4_table(tables + i, state->scales[i], 8);
        tables[count] = tables[count - 1];  // for what follows the last column
    }
    if (job->form != FP8) return;
    int64_t group = row >> job->row_shift;
    slot = lookup_slot(job, row, slot);
    if (state->lookups_of[slot].job == job && state->lookups_of[slot].row == group) return;
    Lookup *lookups = state->lookups + slot * state->groups;
    read_scales(job, row, count, state->scales);
    for (int64_t i = 0; i < count; i++) fp8_lookup(lookups + i, state->scales[i]);
    state->lookups_of[slot].job = job;
    state->lookups_of[slot].row = group;
}
"""

FEW_TOKENS = r"""
INLINE int narrow(const Job *job) {
#ifdef NARROW
    return job->type == BFLOAT16;
#endif
    (void)job;
    return 0;
}

INLINE int64_t padded(const Job *job) { return up(job->columns, BLOCK); }

typedef struct {  // where a row's codes and scales stand
    const uint8_t *codes, *scales;
    const Lookup *lookups;
    const Table *tables;
    int64_t columns, shift;
} Row;

INLINE Row row_of(const Job *job, const State *state, const int form, int64_t row, int64_t slot) {
    Row out = {job->codes + row * job->code_stride, NULL, NULL, state->tables, job->columns, job->column_shift};
    if (form == FP8) out.lookups = state->lookups + lookup_slot(job, row, slot) * state->groups;
    if (form == NVFP4) out.scales = (const uint8_t *)job->scale + row * job->scale_stride;
    if (form == INT4) out.tables = state->own_tables + slot * state->groups;
    return out;
}

// A block of columns. whole: 0 for the last one when it is shorter; zeros follow its codes.
INLINE Decoded decode(const Row *row, const int form, int64_t column, const int whole) {
    const int half = form != FP8;
    const uint8_t *codes = row->codes + (column >> half), *scales = form == NVFP4 ? row->scales + column / 16 : NULL;
    uint8_t last_codes[BLOCK] = {0}, last_scales[BLOCK / 16] = {0};
    if (!whole) {
        memcpy(last_codes, codes, (size_t)(row->columns - column) >> half);
        if (form == NVFP4) memcpy(last_scales, scales, (size_t)(row->columns - column) / 16);
        codes = last_codes, scales = last_scales;
    }
    if (form == FP8) return decode_fp8(row->lookups + (column >> row->shift), codes);
    if (form == NVFP4) return decode_nvfp4(row->tables, scales, codes);
    return decode_int4(row->tables + (column >> row->shift), row->tables + ((column + 32) >> row->shift), codes);
}

INLINE Decoded decode_any(const Row *row, const int form, int64_t column) {
    return __builtin_expect(column + BLOCK <= row->columns, 1) ? decode(row, form, column, 1) : decode(row, form, column, 0);
}

// A block of a token's inputs in another order, filled up with zeros.
INLINE void arrange(const Job *job, int64_t token, int64_t column, const uint16_t *places, void *out) {
    int64_t from = token * job->input_stride + column;
    int count = job->columns - column < BLOCK ? (int)(job->columns - column) : BLOCK;
#ifdef NARROW
    if (narrow(job) && count == BLOCK) { permute((const uint16_t *)job->inputs + from, places, out); return; }
#endif
    uint16_t halves[BLOCK] = {0};
    float values[BLOCK] = {0};
    if (job->type == FLOAT32) memcpy(values, (const float *)job->inputs + from, (size_t)count * 4);
    else memcpy(halves, (const uint16_t *)job->inputs + from, (size_t)count * 2);
#ifdef NARROW
    if (narrow(job)) { permute(halves, places, out); return; }
#endif
    if (job->type != FLOAT32) for (int i = 0; i < BLOCK; i++) values[i] = from_bits((uint32_t)halves[i] << 16);
    for (int i = 0; i < BLOCK; i++) ((float *)out)[i] = values[places[i]];
}

INLINE Sum add(Sum sum, Part part, const void *inputs, int64_t at, const int is_narrow) {
#ifdef NARROW
    if (is_narrow) return add_narrow(sum, part, (const uint16_t *)inputs + at);
#endif
    (void)is_narrow;
    return add_wide(sum, part, (const float *)inputs + at);
}

INLINE void write(const Job *job, int64_t token, int64_t row, float value) {
    int64_t at = token * job->output_stride + row;
    if (job->type == FLOAT32) ((float *)job->outputs)[at] = value;
    else ((uint16_t *)job->outputs)[at] = bfloat16(value);
}

INLINE void dot_block(const Job *job, const Row *rows, const int form, int64_t column, int64_t ahead, Sum (*sums)[FEW][BLOCK / STEP], const int count, const int tokens, const int is_narrow, const int whole) {
    int64_t width = padded(job);
#pragma GCC unroll 2
    for (int row = 0; row < count; row++) {
        __builtin_prefetch(rows[row].codes + (column >> (form != FP8)) + ahead);
        Decoded block = decode(rows + row, form, column, whole);
#pragma GCC unroll 4
        for (int i = 0; i < BLOCK / STEP; i++)
#pragma GCC unroll 2
            for (int token = 0; token < tokens; token++)
                sums[row][token][i] = add(sums[row][token][i], block.parts[i], job->prepared, token * width + column + i * STEP, is_narrow);
    }
}

// PAIR rows or less and FEW tokens or less, decoded in registers.
INLINE void dot(const Job *job, State *state, const int form, int64_t first, int64_t ahead, const int count, const int tokens, const int is_narrow) {
    Sum sums[PAIR][FEW][BLOCK / STEP];
    Row rows[PAIR];
#pragma GCC unroll 2
    for (int row = 0; row < count; row++) {
        prepare_row(state, job, first + row, row);
        rows[row] = row_of(job, state, form, first + row, row);
#pragma GCC unroll 8
        for (int i = 0; i < tokens * (BLOCK / STEP); i++) sums[row][i / (BLOCK / STEP)][i % (BLOCK / STEP)] = nothing();
    }
    int64_t column = 0;
    for (; column + BLOCK <= job->columns; column += BLOCK) dot_block(job, rows, form, column, ahead, sums, count, tokens, is_narrow, 1);
    if (column < job->columns) dot_block(job, rows, form, column, ahead, sums, count, tokens, is_narrow, 0);
#pragma GCC unroll 2
    for (int row = 0; row < count; row++)
#pragma GCC unroll 2
        for (int token = 0; token < tokens; token++) {
            Sum all = sums[row][token][0];
#pragma GCC unroll 4
            for (int i = 1; i < BLOCK / STEP; i++) all += sums[row][token][i];
            write(job, token, first + row, total(all));
        }
}

INLINE void dots(const Job *job, State *state, const int form, int64_t from, int64_t to, const int tokens, const int is_narrow) {
    int64_t row = from, ahead = up(AHEAD, PAIR * job->code_stride);
    for (; row + PAIR <= to; row += PAIR) dot(job, state, form, row, ahead, PAIR, tokens, is_narrow);
    for (; row < to; row++) dot(job, state, form, row, ahead, 1, tokens, is_narrow);
}

INLINE void decode_piece(const Job *job, const State *state, const int form, int64_t row, int64_t slot, Number *out, int64_t from, int64_t to) {
    const int half = form != FP8;
    const Row this = row_of(job, state, form, row, slot);
    // The same row's next piece is read after three other rows, which the processor does not foresee.
    const uint8_t *ahead = job->codes + (to < job->columns ? row * job->code_stride + (to >> half) : (row + ROWS) * job->code_stride);
    for (int64_t column = from; column < to; column += BLOCK, out += BLOCK, ahead += BLOCK >> half) {
        __builtin_prefetch(ahead);
        Decoded block = decode_any(&this, form, column);
        for (int i = 0; i < BLOCK / STEP; i++) keep(out + i * STEP, block.parts[i]);
    }
}

// ROWS rows of a piece times some tokens, added to sums [tokens, ROWS].
INLINE void tile(const Number *piece, int64_t length, const void *inputs, int64_t from, int64_t stride, Sum *sums, const int tokens, const int is_narrow) {
    Sum kept[TILE * ROWS];
#pragma GCC unroll 32
    for (int i = 0; i < tokens * ROWS; i++) kept[i] = sums[i];
    for (int64_t k = 0; k < length; k += STEP)
        for (int row = 0; row < ROWS; row++) {
            Part part = load(piece + row * PIECE + k);
            for (int token = 0; token < tokens; token++)
                kept[token * ROWS + row] = add(kept[token * ROWS + row], part, inputs, from + token * stride + k, is_narrow);
        }
#pragma GCC unroll 32
    for (int i = 0; i < tokens * ROWS; i++) sums[i] = kept[i];
}

INLINE void tiles(const Number *piece, int64_t length, const void *inputs, int64_t from, int64_t stride, Sum *sums, int64_t tokens, const int is_narrow) {
    for (int64_t token = 0; token < tokens;) {
        int64_t left = tokens - token, parts = (left + TILE - 1) / TILE, here = (left + parts - 1) / parts;
        Sum *some = sums + token * ROWS;
        int64_t at = from + token * stride;
        if (here == 1) tile(piece, length, inputs, at, stride, some, 1, is_narrow);
        if (here == 2) tile(piece, length, inputs, at, stride, some, 2, is_narrow);
        if (here == 3) tile(piece, length, inputs, at, stride, some, 3, is_narrow);
        if (TILE > 3 && here == 4) tile(piece, length, inputs, at, stride, some, 4, is_narrow);
        if (TILE > 4 && here == 5) tile(piece, length, inputs, at, stride, some, 5, is_narrow);
        if (TILE > 5 && here == 6) tile(piece, length, inputs, at, stride, some, 6, is_narrow);
        token += here;
    }
}

INLINE void multiply_rows(const Job *job, State *state, const int form, int64_t first, int64_t count, const int is_narrow) {
    int64_t width = padded(job);
    for (int64_t i = 0; i < count; i++) prepare_row(state, job, first + i, i);
    for (int64_t start = 0; start < job->tokens; start += TOKENS) {
        int64_t tokens = job->tokens - start < TOKENS ? job->tokens - start : TOKENS;
        for (int64_t i = 0; i < tokens * ROWS; i++) state->sums[i] = nothing();
        for (int64_t from = 0; from < job->columns; from += PIECE) {
            int64_t to = from + PIECE < job->columns ? from + PIECE : job->columns;
            for (int64_t i = 0; i < count; i++) decode_piece(job, state, form, first + i, i, state->piece + i * PIECE, from, to);
            tiles(state->piece, up(to - from, BLOCK), job->prepared, start * width + from, width, state->sums, tokens, is_narrow);
        }
        for (int64_t token = 0; token < tokens; token++)
            for (int64_t row = 0; row < count; row++)
                write(job, start + token, first + row, total(state->sums[token * ROWS + row]));
    }
}

"""

RUN = r"""
INLINE void expand_row(const Job *job, State *state, const int form, int64_t row) {
    prepare_row(state, job, row, 0);
    uint16_t last[BLOCK], *out = (uint16_t *)job->outputs + row * job->output_stride;
    const Natural natural = natural_order(form);
    const Row this = row_of(job, state, form, row, 0);
    for (int64_t column = 0; column < job->columns; column += BLOCK) {
        Decoded block = decode_any(&this, form, column);
        for (int i = 0; i < BLOCK / STEP; i++) keep(state->piece + i * STEP, block.parts[i]);
        int whole = column + BLOCK <= job->columns;
        write_natural(natural, state->piece, whole ? out + column : last);
        if (!whole) memcpy(out + column, last, (size_t)(job->columns - column) * 2);
    }
}

INLINE void work_form(const Job *job, State *state, const int form, int64_t from, int64_t to, const int is_narrow) {
    if (job->tokens < 0)
        for (int64_t row = from; row < to; row++) expand_row(job, state, form, row);
    else if (job->tokens == 1) dots(job, state, form, from, to, 1, is_narrow);
    else if (is_narrow && job->tokens == FEW) dots(job, state, form, from, to, FEW, is_narrow);
    else if (is_panels(job))
        for (int64_t row = from; row < to; row += PANEL_ROWS)
            multiply_panels(job, state, form, row, to - row < PANEL_ROWS ? to - row : PANEL_ROWS, is_narrow);
    else
        for (int64_t row = from; row < to; row += ROWS)
            multiply_rows(job, state, form, row, to - row < ROWS ? to - row : ROWS, is_narrow);
}

#define WORK(form) static void work_##form##_wide(const Job *job, State *state, int64_t from, int64_t to) { work_form(job, state, form, from, to, 0); }
WORK(FP8) WORK(NVFP4) WORK(INT4)
#undef WORK
#ifdef NARROW
#define WORK(form) static void work_##form##_narrow(const Job *job, State *state, int64_t from, int64_t to) { work_form(job, state, form, from, to, 1); }
WORK(FP8) WORK(NVFP4) WORK(INT4)
#endif

static void work(const Job *job, State *state, int64_t from, int64_t to) {
#ifdef NARROW
    if (narrow(job)) {
        if (job->form == FP8) work_FP8_narrow(job, state, from, to);
        else if (job->form == NVFP4) work_NVFP4_narrow(job, state, from, to);
        else work_INT4_narrow(job, state, from, to);
        return;
    }
#endif
    if (job->form == FP8) work_FP8_wide(job, state, from, to);
    else if (job->form == NVFP4) work_NVFP4_wide(job, state, from, to);
    else work_INT4_wide(job, state, from, to);
}

// All inputs in the order of decoded numbers.
static void prepare_inputs(const Job *job) {
    uint16_t places[BLOCK];
    for (int i = 0; i < BLOCK; i++) places[i] = (uint16_t)order((int)job->form, narrow(job) ? i : wide_order(i));
    for (int64_t token = 0; token < job->tokens; token++)
        for (int64_t column = 0; column < padded(job); column += BLOCK) {
            int64_t at = token * padded(job) + column;
            arrange(job, token, column, places, (char *)job->prepared + at * (narrow(job) ? 2 : 4));
        }
}

typedef struct {
    const Job *jobs;
    State *states;
    int64_t count;
    int packing;  // inputs are packed before anything is multiplied
    atomic_llong next_chunk;
    atomic_int next_state;
} Run;

INLINE int64_t chunk_rows(const Job *job) { return is_panels(job) ? PANEL_ROWS : up(CHUNK / job->code_stride + 1, ROWS); }

INLINE int64_t chunks(const Run *run, const Job *job) {
    if (run->packing) return job->packs ? token_groups(job->tokens) : 0;
    return (job->rows + chunk_rows(job) - 1) / chunk_rows(job);
}

static void run_thread(void *data) {
    Run *run = data;
    State *state = run->states + atomic_fetch_add(&run->next_state, 1);
    const Job *job = run->jobs, *end = job + run->count;
    for (int64_t passed = 0;;) {
        int64_t chunk = atomic_fetch_add(&run->next_chunk, 1) - passed;
        while (job < end && chunk >= chunks(run, job)) chunk -= chunks(run, job), passed += chunks(run, job), job++;
        if (job == end) return;
        if (run->packing) { pack_group(job, chunk); continue; }
        int64_t from = chunk * chunk_rows(job), to = from + chunk_rows(job);
        work(job, state, from, to < job->rows ? to : job->rows);
    }
}

static void *fresh(int64_t bytes) {
    void *memory = aligned_alloc(64, (size_t)up(bytes ? bytes : 1, 64));
#ifdef POISON
    if (memory) memset(memory, 0xff, (size_t)up(bytes, 64));
#endif
    return memory;
}

#define MOST(a, b) ((a) > (b) ? (a) : (b))

static int fill(State *state, int64_t groups) {
    memset(state, 0, sizeof *state);
    state->groups = groups;
    state->piece = fresh(MOST(ROWS * PIECE, PANEL_ROWS * PANEL) * (int64_t)sizeof(Number));
    state->sums = fresh(MOST(ROWS * TOKENS, PANEL_ROWS * PASS / LANES) * (int64_t)sizeof(Sum));
    state->tables = fresh(256 * (int64_t)sizeof(Table));
    state->lookups = fresh(PANEL_ROWS * groups * (int64_t)sizeof(Lookup));
    state->own_tables = fresh(PANEL_ROWS * groups * (int64_t)sizeof(Table));
    state->scales = fresh(groups * (int64_t)sizeof(float));
    state->zeros = fresh(groups * (int64_t)sizeof(float));
    return state->piece && state->sums && state->tables && state->lookups && state->own_tables && state->scales && state->zeros;
}

static void drop(State *state) {
    free(state->piece);
    free(state->sums);
    free(state->tables);
    free(state->lookups);
    free(state->own_tables);
    free(state->scales);
    free(state->zeros);
}

static int64_t prepared_bytes(const Job *job) {
    int64_t tokens = is_panels(job) ? up(job->tokens, LANES) : job->tokens;
    return tokens > 0 ? up(tokens * padded(job) * (narrow(job) ? 2 : 4), 64) : 0;
}

static int same_inputs(const Job *a, const Job *b) {
    return a->inputs == b->inputs && a->input_stride == b->input_stride && a->tokens == b->tokens && a->columns == b->columns
        && a->type == b->type && (a->form == FP8) == (b->form == FP8);
}

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

// Give each job its place for inputs, and put those of few tokens there.
static void prepare_jobs(Job *jobs, int64_t count, char *at) {
    for (int64_t i = 0; i < count; i++) {
        jobs[i].packs = 0;
        if (i && same_inputs(jobs + i, jobs + i - 1)) { jobs[i].prepared = jobs[i - 1].prepared; continue; }
        jobs[i].prepared = at;
        jobs[i].packs = is_panels(jobs + i);
        if (!jobs[i].packs) prepare_inputs(jobs + i);
        at += prepared_bytes(jobs + i);
    }
}

// Whether the kernels know what the scales of an FP8 weight make of its codes.
static int known_scales(const Job *job) {
    int64_t count = groups_of(job);
    for (int64_t row = 0; job->form == FP8 && row < job->rows; row = ((row >> job->row_shift) + 1) << job->row_shift)
        for (int64_t i = 0; i < count; i++)
            if (!is_plain(one_scale(job, row, i))) return 0;
    return 1;
}

// Do all jobs. parallel: GOMP_parallel of the OpenMP runtime that torch uses. Returns 0 when memory is short, -1 when a
// weight has scales that the kernels do not take.
int run(Job *jobs, int64_t count, int64_t threads, Parallel parallel) {
    int64_t bytes = 0, groups = 1, made = 0;
    for (int64_t i = 0; i < count; i++) if (!known_scales(jobs + i)) return -1;
    for (int64_t i = 0; i < count; i++) {
        bytes += prepared_bytes(jobs + i);
        if (groups_of(jobs + i) >= groups) groups = groups_of(jobs + i) + 1;
    }
    char *inputs = fresh(bytes);
    State *states = malloc((size_t)threads * sizeof(State));
    int fine = inputs && states;
    if (fine) prepare_jobs(jobs, count, inputs);
    while (fine && made < threads) fine = fill(states + made++, groups);
    for (int packing = 1; fine && packing >= 0; packing--) {
        Run all = {jobs, states, count, packing, 0, 0};
        if (threads > 1) parallel(run_thread, &all, (unsigned)threads, 0);
        else run_thread(&all);
    }
    for (int64_t i = 0; states && i < made; i++) drop(states + i);
    free(states);
    free(inputs);
    return fine;
}
"""

PLAIN = r"""
enum { UNIT = 1 };

INLINE void transpose(const float *in, int64_t stride, float *out) {
    for (int i = 0; i < LANES; i++) for (int j = 0; j < LANES; j++) out[j * LANES + i] = in[i * stride + j];
}

INLINE int wide_order(int position) { return position; }

typedef int Natural;
INLINE Natural natural_order(const int form) { return form; }

INLINE void write_natural(const Natural natural, const Number *numbers, uint16_t *out) {
    for (int i = 0; i < BLOCK; i++) out[order(natural, i)] = (uint16_t)(to_bits(numbers[i]) >> 16);
}
"""

SCALAR_DECODE = r"""
// Decodes 16 columns one after the other; for processors that have nothing better.
typedef float Number;
typedef float Part __attribute__((vector_size(16)));
typedef Part Sum;
enum { BLOCK = 16, STEP = 4, TILE = 3, LANES = 4 };

typedef struct { Part parts[BLOCK / STEP]; } Decoded;
typedef struct { float values[16]; } Table;
typedef struct { float scale; } Lookup;

INLINE float rounded(float value) { return from_bits((uint32_t)bfloat16(value) << 16); }

INLINE void nvfp4_table(Table *table, float scale, float divisor) {
    for (int code = 0; code < 16; code++) table->values[code] = rounded(e2m1[code] * scale / divisor);
}

INLINE void int4_table(Table *table, float scale, float zero) {
    for (int code = 0; code < 16; code++) table->values[code] = rounded(((float)code - zero) * scale);
}

INLINE void fp8_lookup(Lookup *lookup, float scale) { lookup->scale = scale; }

INLINE Decoded decode_fp8(const Lookup *lookup, const uint8_t *codes) {
    Decoded out;
    for (int i = 0; i < BLOCK; i++) out.parts[i / 4][i % 4] = rounded(e4m3[codes[i]] * lookup->scale);
    return out;
}

INLINE Decoded decode4(const Table *table, const uint8_t *codes) {
    Decoded out;
    for (int i = 0; i < BLOCK; i++) out.parts[i / 4][i % 4] = table->values[codes[i / 2] >> 4 * (i % 2) & 15];
    return out;
}

INLINE Decoded decode_nvfp4(const Table *tables, const uint8_t *scales, const uint8_t *codes) { return decode4(tables + scales[0], codes); }
INLINE Decoded decode_int4(const Table *first, const Table *second, const uint8_t *codes) { (void)second; return decode4(first, codes); }

INLINE int order(int form, int position) { (void)form; return position; }
"""

SCALAR_SUM = r"""
INLINE Sum nothing(void) { return (Sum){0, 0, 0, 0}; }
INLINE Part load(const Number *numbers) { return *(const Part *)numbers; }
INLINE void keep(Number *numbers, Part part) { *(Part *)numbers = part; }
INLINE Sum add_wide(Sum sum, Part part, const float *inputs) { return sum + part * *(const Part *)inputs; }
INLINE Part spread(const Number *number) { return (Part){*number, *number, *number, *number}; }
INLINE float total(Sum sum) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }

enum { PANELS_NARROW = 12, PANELS_WIDE = 12, VECTORS_NARROW = 2, VECTORS_WIDE = 2, KEPT_NARROW = 12, KEPT_WIDE = 12 };

INLINE int is_plain(float scale) { (void)scale; return 1; }
"""
