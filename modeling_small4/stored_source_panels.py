"""C text of the kernels for stored weights: products with many tokens. Part of `DRIVER` of `stored_source`, for all
processors.

A panel of rows and columns is decoded once and multiplied with all tokens. Tokens stand side by side in a register, a
weight's number is spread over it, so nothing is added up across a register.
"""

PANELS = r"""
INLINE int is_panels(const Job *job) { return job->tokens >= (narrow(job) ? PANELS_NARROW : PANELS_WIDE); }

INLINE int64_t token_groups(int64_t tokens) { return (tokens + LANES - 1) / LANES; }

// Where a group's inputs for a panel begin: [panels, groups, columns of a panel / UNIT, LANES, UNIT].
INLINE int64_t packed_at(const Job *job, int64_t group, int64_t column) {
    int64_t left = padded(job) - column, length = left < PANEL ? left : PANEL;
    return (column * token_groups(job->tokens) + group * length) * LANES;
}

// LANES tokens' inputs side by side, zeros for those that are not there.
static void pack_group(const Job *job, int64_t group) {
    const int words = BLOCK / (narrow(job) ? 2 : 1);
    uint32_t *out = (uint32_t *)job->prepared;
    uint16_t places[BLOCK];
    _Alignas(64) uint32_t lines[LANES * BLOCK] = {0};  // zeros stay where there is no token
    for (int i = 0; i < BLOCK; i++) places[i] = (uint16_t)order((int)job->form, i);
    for (int64_t column = 0; column < padded(job); column += BLOCK) {
        for (int64_t i = 0; i < LANES && group * LANES + i < job->tokens; i++)
            arrange(job, group * LANES + i, column, places, lines + i * words);
        int64_t panel = column / PANEL * PANEL, at = packed_at(job, group, panel) + (column - panel) * LANES;
        if (narrow(job)) at /= 2;
        for (int i = 0; i < words; i += LANES) transpose((const float *)(lines + i), words, (float *)(out + at + i * LANES));
    }
}

// Some rows of a panel times vectors * LANES tokens, added to sums [PANEL_ROWS, groups].
INLINE void panel_tile(const Number *piece, int64_t length, const void *inputs, int64_t at, Sum *sums, int64_t groups, const int rows, const int vectors, const int is_narrow) {
    Sum kept[32];
#pragma GCC unroll 32
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) kept[row * vectors + i] = nothing();
    for (int64_t k = 0; k < length; k += UNIT)
#pragma GCC unroll 32
        for (int row = 0; row < rows; row++) {
            Part part = spread(piece + row * PANEL + k);
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++)
                kept[row * vectors + i] = add(kept[row * vectors + i], part, inputs, at + (i * length + k) * LANES, is_narrow);
        }
#pragma GCC unroll 32
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) sums[row * groups + i] += kept[row * vectors + i];
}

INLINE void panel_tiles(const State *state, int64_t count, int64_t length, const void *inputs, int64_t at, int64_t group, int64_t groups, const int vectors, const int is_narrow) {
    const int rows = (is_narrow ? KEPT_NARROW : KEPT_WIDE) / vectors;
    for (int64_t row = 0; row < count; row += rows)
        panel_tile(state->piece + row * PANEL, length, inputs, at, state->sums + row * groups + group, groups, rows, vectors, is_narrow);
}

// A decoded panel times all tokens from `start` on.
INLINE void panel_times_tokens(const Job *job, const State *state, int64_t count, int64_t column, int64_t start, int64_t groups, const int is_narrow) {
    const int most = is_narrow ? VECTORS_NARROW : VECTORS_WIDE;
    int64_t left = padded(job) - column, length = left < PANEL ? left : PANEL;
    for (int64_t group = 0; group < groups;) {
        int64_t tiles = (groups - group + most - 1) / most, here = (groups - group + tiles - 1) / tiles;
        int64_t at = packed_at(job, start / LANES + group, column);
        if (here == 1) panel_tiles(state, count, length, job->prepared, at, group, groups, 1, is_narrow);
        if (here == 2) panel_tiles(state, count, length, job->prepared, at, group, groups, 2, is_narrow);
        if (most > 2 && here == 3) panel_tiles(state, count, length, job->prepared, at, group, groups, 3, is_narrow);
        if (most > 3 && here == 4) panel_tiles(state, count, length, job->prepared, at, group, groups, 4, is_narrow);
        group += here;
    }
}

INLINE void write_panel(const Job *job, const State *state, int64_t first, int64_t count, int64_t start, int64_t groups) {
    _Alignas(64) float tile[LANES * LANES];
    for (int64_t group = 0; group < groups; group++)
        for (int64_t row = 0; row < count; row += LANES) {
            transpose((const float *)(state->sums + row * groups + group), groups * LANES, tile);
            int64_t token = start + group * LANES, rows = count - row < LANES ? count - row : LANES;
            for (int64_t i = 0; i < LANES && token + i < job->tokens; i++) {
                int64_t at = (token + i) * job->output_stride + first + row;
                if (job->type == FLOAT32) memcpy((float *)job->outputs + at, tile + i * LANES, (size_t)rows * 4);
                else for (int64_t j = 0; j < rows; j++) ((uint16_t *)job->outputs)[at + j] = bfloat16(tile[i * LANES + j]);
            }
        }
}

// Up to PANEL_ROWS rows times all tokens.
INLINE void multiply_panels(const Job *job, State *state, const int form, int64_t first, int64_t count, const int is_narrow) {
    for (int64_t i = 0; i < count; i++) prepare_row(state, job, first + i, i);
    for (int64_t start = 0; start < job->tokens; start += PASS) {
        int64_t groups = token_groups(job->tokens - start < PASS ? job->tokens - start : PASS);
        for (int64_t i = 0; i < PANEL_ROWS * groups; i++) state->sums[i] = nothing();
        for (int64_t column = 0; column < job->columns; column += PANEL) {
            int64_t to = column + PANEL < job->columns ? column + PANEL : job->columns;
            for (int64_t i = 0; i < count; i++) decode_piece(job, state, form, first + i, i, state->piece + i * PANEL, column, to);
            panel_times_tokens(job, state, count, column, start, groups, is_narrow);
        }
        write_panel(job, state, first, count, start, groups);
    }
}
"""
