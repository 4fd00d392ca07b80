#include "nested.h"

#include <stddef.h>

#include "simd.h"

enum { BITS = 2, FIELDS = 8 / BITS, LINE = 64, LINES_A_SPAN = 2, LOW = 15, HIGH = 4 };

// LANES rows of a panel, where they begin.
typedef struct {
    const uint8_t *lines, *steps;
    const uint16_t *scale, *minimum;
} Rows;

// The integer products of `lines` lines, each times its steps, with the codes of T tokens, which are stride apart.
INLINE void line_dots(const int T, const int lines, const uint8_t *data, const uint8_t *steps, const int8_t *codes, size_t stride,
                      vi *dots) {
    const vu mask = (vu)vi_set(0x03030303);
    for (int t = 0; t < T; t++) dots[t] = vi_set(0);
    for (int line = 0; line < lines; line++, data += LINE, steps += PANEL, codes += NESTED_GROUP) {
        const vu packed = vu_load(data);
        const vi step = vi_bytes(steps) & LOW;
        vu unpacked[FIELDS];
        for (int field = 0; field < FIELDS; field++) unpacked[field] = (packed >> (BITS * field)) & mask;
        for (int t = 0; t < T; t++) {
            vi products = vi_set(0);
            for (int field = 0; field < FIELDS; field++) {
                int32_t four;
                memcpy(&four, codes + (size_t)t * stride + 4 * field, 4);
                products = dot4_short(products, unpacked[field], four);
            }
            dots[t] += scaled_short(products, step);
        }
    }
}

// The rows times T tokens. together: lines that share a scale of the activations and of the rows: 2, or 1 where a block
// does not hold whole spans. T and together are constants wherever this is inlined.
INLINE void nested_tile(const int T, const int together, const Matrix *m, Rows rows, const Inputs *x, int token, float *out, int stride) {
    const int per_block = m->group / NESTED_GROUP, blocks = m->columns / m->group;
    const int spans = m->columns / m->span;
    const size_t first = (size_t)token * m->columns, groups = m->columns / NESTED_GROUP;
    const int8_t *is_fine = x->fine + (size_t)token * spans;
    const float *x_scale = x->scale + (size_t)token * spans, *x_sum = x->group_sum + token * groups;
    vf total[CODE_TILE], products[CODE_TILE];
    for (int t = 0; t < T; t++) total[t] = vf_set(0);
    for (int block = 0, line = 0; block < blocks; block++) {
        const int end = line + per_block;
        for (int t = 0; t < T; t++) products[t] = vf_set(0);
        for (int at = line; at < end; at += together) {
            const uint8_t *data = rows.lines + (size_t)at * LINE, *steps = rows.steps + (size_t)at * PANEL;
            const size_t column = first + at * NESTED_GROUP, s = (size_t)at / LINES_A_SPAN;
            vi dots[CODE_TILE];
            int fine = 0;
            __builtin_prefetch(data + 2048);
            __builtin_prefetch(data + 2048 + LINE);
            __builtin_prefetch(steps + 512);
            line_dots(T, together, data, steps, x->codes + column, m->columns, dots);
            for (int t = 0; t < T; t++) {
                products[t] = vfma(vf_of(dots[t]), vf_set(x_scale[(size_t)t * spans + s]), products[t]);
                fine |= is_fine[(size_t)t * spans + s];
            }
            if (!fine) continue;
            line_dots(T, together, data, steps, x->rest + column, m->columns, dots);
            for (int t = 0; t < T; t++) products[t] = vfma(vf_of(dots[t]), vf_set(x_scale[(size_t)t * spans + s] / REST), products[t]);
        }
        const vf scale = vf_half(rows.scale + (size_t)block * PANEL), minimum = vf_half(rows.minimum + (size_t)block * PANEL);
        for (int t = 0; t < T; t++) {
            total[t] = vfma(scale, products[t], total[t]);
            products[t] = vf_set(0);
        }
        for (; line < end; line++) {
            const vf step = vf_of(vi_bytes(rows.steps + (size_t)line * PANEL) >> HIGH);
            for (int t = 0; t < T; t++) products[t] = vfma(step, vf_set(x_sum[t * groups + line]), products[t]);
        }
        for (int t = 0; t < T; t++) total[t] = vfma(-minimum, products[t], total[t]);
    }
    for (int t = 0; t < T; t++) vf_store(out + t * stride, total[t]);
}

// The same for one token whose activations are not rounded.
static void exact_tile(const Matrix *m, Rows rows, const Inputs *x, int token, float *out) {
    const int per_block = m->group / NESTED_GROUP, lines = m->columns / m->group * per_block;
    const vu mask = (vu)vi_set(3);
    const float *values = x->values + (size_t)token * x->columns;
    vf sums[FIELDS] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    for (int line = 0; line < lines; line++) {
        const size_t block = line / per_block * PANEL;
        const vu packed = vu_load(rows.lines + (size_t)line * LINE);
        const vi steps = vi_bytes(rows.steps + (size_t)line * PANEL);
        const vf scale = vf_half(rows.scale + block) * vf_of(steps & LOW);
        const vf minimum = vf_half(rows.minimum + block) * vf_of(steps >> HIGH);
#pragma GCC unroll 16
        for (int i = 0; i < NESTED_GROUP; i++, values++) {
            const vf code = vf_of((vi)(packed >> (i % 4 * 8 + i / 4 * BITS) & mask));
            sums[i % 4] = vfma(vfma(scale, code, -minimum), vf_set(*values), sums[i % 4]);
        }
    }
    vf_store(out, (sums[0] + sums[1]) + (sums[2] + sums[3]));
}

INLINE void nested_tiles(int tokens, const int together, const Matrix *m, Rows rows, const Inputs *x, int token, float *out, int stride) {
    switch (tokens) {
        case 1: nested_tile(1, together, m, rows, x, token, out, stride); break;
        case 2: nested_tile(2, together, m, rows, x, token, out, stride); break;
        case 3: nested_tile(3, together, m, rows, x, token, out, stride); break;
        case 4: nested_tile(4, together, m, rows, x, token, out, stride); break;
#if CODE_TILE == 8
        case 8: nested_tile(8, together, m, rows, x, token, out, stride); break;
#endif
    }
}

void nested_panel(const Matrix *m, int panel, const Inputs *x, int token, int tokens, float *out, int stride) {
    const size_t lines = (size_t)panel * (m->columns / NESTED_GROUP), blocks = (size_t)panel * (m->columns / m->group);
    for (int part = 0; part < PANEL; part += LANES, out += LANES) {
        const Rows rows = {(const uint8_t *)m->data + lines * LINE + 4 * part, m->steps + lines * PANEL + part,
                           m->scale + blocks * PANEL + part, m->minimum + blocks * PANEL + part};
        if (!m->span)
            for (int t = 0; t < tokens; t++) exact_tile(m, rows, x, token + t, out + t * stride);
        else if (m->group % m->span == 0) nested_tiles(tokens, 2, m, rows, x, token, out, stride);
        else nested_tiles(tokens, 1, m, rows, x, token, out, stride);
    }
}
