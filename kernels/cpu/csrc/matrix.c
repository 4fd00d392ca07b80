#include "matrix.h"

#include <stddef.h>

#include "halves.h"
#include "nested.h"
#include "simd.h"

#define PANELS 4       // of codes whose products with a tile of tokens are made one behind the other
#define MOST_WIDE 128  // tokens whose products with halves are computed together

// The scale of each span of a token, NaN where a value is infinite or no number; returns the sum of their squares.
static float span_scales(const float *values, int span, int spans, float *scale) {
    float squares = 0;
    for (int s = 0; s < spans; s++, values += span) {
        vf largest = vf_set(0), none = vf_set(0);  // none: 0, or NaN
        for (int i = 0; i < span; i += LANES) {
            vf v = vf_load(values + i);
            largest = vf_max(largest, vf_max(v, -v));
            none = vfma(v, vf_set(0), none);
        }
        scale[s] = vf_largest(largest) / 127 + vf_sum(none);
        squares += scale[s] * scale[s];
    }
    return squares;
}

// Round NESTED_GROUP values by their scale's inverse; returns the sum of the codes.
static float round_group(const float *values, float inverse, int8_t *codes) {
    vi sum = vi_set(0);
    for (int i = 0; i < NESTED_GROUP; i += LANES) {
        vf v = vf_load(values + i) * inverse;
        vi rounded = vi_round(vf_pick(vf_max(v, -v) < vf_set(128), v, vf_set(0)));
        sum += rounded;
        vi_store_bytes(codes + i, rounded);
    }
    return vf_sum(vf_of(sum));
}

// Round what the codes left; returns the sum of the rests.
static float round_rest(const float *values, float inverse, int8_t *rest) {
    vi sum = vi_set(0);
    for (int i = 0; i < NESTED_GROUP; i += LANES) {
        vf v = vf_load(values + i) * inverse;
        v = vf_pick(vf_max(v, -v) < vf_set(128), v, vf_set(0));
        vi left = vi_round((v - vf_of(vi_round(v))) * REST);
        sum += left;
        vi_store_bytes(rest + i, left);
    }
    return vf_sum(vf_of(sum));
}

static void quantize_token(Inputs *inputs, int token) {
    const int span = inputs->span, spans = inputs->columns / span;
    const size_t first = (size_t)token * inputs->columns;
    const float *values = inputs->values + first;
    int8_t *codes = inputs->codes + first, *rest = inputs->rest + first, *fine = inputs->fine + (size_t)token * spans;
    float *scale = inputs->scale + (size_t)token * spans, *sum = inputs->sum + (size_t)token * spans;
    float *group_sum = inputs->group_sum + first / NESTED_GROUP;
    const float limit = FINE_SHARE / spans * span_scales(values, span, spans, scale);
    memset(rest, 0, inputs->columns);
    for (int s = 0; s < spans; s++) {
        const float inverse = scale[s] > 0 ? 1 / scale[s] : 0;  // not of NaN either
        float whole = 0, left = 0;                              // both sums are exact
        fine[s] = scale[s] * scale[s] > limit;
        for (int at = s * span; at < (s + 1) * span; at += NESTED_GROUP) {
            const float codes_here = round_group(values + at, inverse, codes + at);
            const float rest_here = fine[s] ? round_rest(values + at, inverse, rest + at) : 0;
            group_sum[at / NESTED_GROUP] = scale[s] * (codes_here + rest_here / REST);
            whole += codes_here;
            left += rest_here;
        }
        sum[s] = whole + left / REST;
    }
}

void prepare_token(Inputs *inputs, int token, const Matrix *m, int as_codes) {
    if (m->in) inputs->added[token] = transform_inputs(m->in, inputs->values + (size_t)token * inputs->columns, inputs->columns);
    if (as_codes) quantize_token(inputs, token);
}

// The products of a span's lines with the codes of T tokens, which are stride apart.
INLINE void span_dots(const int T, const int bits, int span, const uint8_t *lines, const int8_t *codes, size_t stride, vf *dots) {
    const int fields = 8 / bits, chains = T == 1 ? fields : 1;  // one token alone would wait for its own sums
    const vu mask = (vu)vi_set((int)(0x01010101u * ((1u << bits) - 1)));
    vi sums[CODE_TILE][4];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < chains; c++) sums[t][c] = vi_set(0);
    for (int line = 0; line < span / (4 * fields); line++, lines += 64) {
        __builtin_prefetch(lines + 2048);
        vu packed = vu_load(lines);
#pragma GCC unroll 4
        for (int field = 0; field < fields; field++, codes += 4) {
            vu unpacked = bits == 8 ? packed : (packed >> (bits * field)) & mask;
            const int chain = field % chains;
            for (int t = 0; t < T; t++) {
                int32_t four;
                memcpy(&four, codes + (size_t)t * stride, 4);
                sums[t][chain] = dot4(sums[t][chain], unpacked, four, bits);
            }
        }
    }
    for (int t = 0; t < T; t++) {
        vi sum = sums[t][0];
        for (int c = 1; c < chains; c++) sum += sums[t][c];
        dots[t] = vf_of(sum);
    }
}

// LANES rows of a panel of codes times T tokens. lines: the panel's first line, already at these rows; scale and
// zeros likewise. out: the tokens' products, stride apart. T and bits are constants wherever this is inlined.
INLINE void code_tile(const int T, const int bits, const Matrix *m, const uint8_t *lines, const uint16_t *scale, const uint8_t *zeros,
                      const Inputs *x, int token, float *out, int stride) {
    const int span = m->span, spans = m->columns / span, per_group = m->group / span;
    const size_t first = (size_t)token * m->columns, line_bytes = (size_t)span * PANEL * bits / 8;
    const float *x_scale = x->scale + (size_t)token * spans, *x_sum = x->sum + (size_t)token * spans;
    const int8_t *is_fine = x->fine + (size_t)token * spans;
    vf total[CODE_TILE];
    for (int t = 0; t < T; t++) total[t] = vf_set(0);
    vf row_scale = vf_set(0), row_zero = vf_set(m->zero);
    for (int s = 0; s < spans; s++, lines += line_bytes) {
        if (s % per_group == 0) {
            row_scale = vf_half(scale);
            scale += PANEL;
            if (zeros) {
                row_zero = vf_bytes(zeros);
                zeros += PANEL;
            }
        }
        vf dots[CODE_TILE];
        int fine = 0;
        span_dots(T, bits, span, lines, x->codes + first + s * span, m->columns, dots);
        for (int t = 0; t < T; t++) {
            const size_t at = (size_t)t * spans + s;
            vf product = vfma(-row_zero, vf_set(x_sum[at]), dots[t]);
            total[t] = vfma(product, row_scale * x_scale[at], total[t]);
            fine |= is_fine[at];
        }
        if (!fine) continue;
        span_dots(T, bits, span, lines, x->rest + first + s * span, m->columns, dots);
        for (int t = 0; t < T; t++) total[t] = vfma(dots[t], row_scale * (x_scale[(size_t)t * spans + s] / REST), total[t]);
    }
    for (int t = 0; t < T; t++) vf_store(out + t * stride, total[t]);
}

// The same for one token whose activations are not rounded.
INLINE void exact_tile(const int bits, const Matrix *m, const uint8_t *lines, const uint16_t *scale, const uint8_t *zeros, const Inputs *x,
                       int token, float *out) {
    const int fields = 8 / bits;
    const vu mask = (vu)vi_set((1 << bits) - 1);
    const float *values = x->values + (size_t)token * x->columns;
    vf total = vf_set(0), row_zero = vf_set(m->zero);
    for (int group = 0; group < m->columns / m->group; group++, scale += PANEL) {
        if (zeros) row_zero = vf_bytes(zeros + group * PANEL);
        vf sums[4] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
        for (const float *end = values + m->group; values < end; lines += 64) {
            __builtin_prefetch(lines + 2048);
            const vu packed = vu_load(lines);
#pragma GCC unroll 16
            for (int i = 0; i < 4 * fields; i++, values++) {
                const vf level = vf_of((vi)(packed >> (i % 4 * 8 + i / 4 * bits) & mask)) - row_zero;
                sums[i % 4] = vfma(level, vf_set(*values), sums[i % 4]);
            }
        }
        total = vfma((sums[0] + sums[1]) + (sums[2] + sums[3]), vf_half(scale), total);
    }
    vf_store(out, total);
}

// How many of the tokens left go into the next tile.
static int tile_of(int left) { return left >= CODE_TILE ? CODE_TILE : left >= 4 ? 4 : left; }

INLINE void code_tiles(int tokens, const int bits, const Matrix *m, const uint8_t *lines, const uint16_t *scale, const uint8_t *zeros,
                       const Inputs *x, int token, float *out, int stride) {
    if (!m->span) {
        for (int t = 0; t < tokens; t++) exact_tile(bits, m, lines, scale, zeros, x, token + t, out + t * stride);
        return;
    }
    switch (tokens) {
        case 1: code_tile(1, bits, m, lines, scale, zeros, x, token, out, stride); break;
        case 2: code_tile(2, bits, m, lines, scale, zeros, x, token, out, stride); break;
        case 3: code_tile(3, bits, m, lines, scale, zeros, x, token, out, stride); break;
        case 4: code_tile(4, bits, m, lines, scale, zeros, x, token, out, stride); break;
#if CODE_TILE == 8
        case 8: code_tile(8, bits, m, lines, scale, zeros, x, token, out, stride); break;
#endif
    }
}

static void code_panel(const Matrix *m, int panel, const Inputs *x, int token, int tokens, float *out, int stride) {
    const size_t groups = m->columns / m->group;
    for (int part = 0; part < PANEL; part += LANES) {
        const uint8_t *lines = (const uint8_t *)m->data + (size_t)panel * m->columns * PANEL * m->bits / 8 + 4 * part;
        const uint16_t *scale = m->scale + panel * groups * PANEL + part;
        const uint8_t *zeros = m->zeros ? m->zeros + panel * groups * PANEL + part : NULL;
        switch (m->bits) {
            case 2: code_tiles(tokens, 2, m, lines, scale, zeros, x, token, out + part, stride); break;
            case 4: code_tiles(tokens, 4, m, lines, scale, zeros, x, token, out + part, stride); break;
            case 8: code_tiles(tokens, 8, m, lines, scale, zeros, x, token, out + part, stride); break;
        }
    }
}

// Panels of codes that are transformed together, with what surrounds them.
static void code_panels(const Matrix *m, int panel, int panels, const Inputs *x, int token, int tokens, float *products) {
    const int rows = panels * PANEL;
    for (int p = 0; p < panels; p++)
        (m->steps ? nested_panel : code_panel)(m, panel + p, x, token, tokens, products + p * PANEL, rows);
    for (int t = 0; t < tokens; t++) {
        float *product = products + t * rows;
        if (m->in && m->in->shift)
            for (int r = 0; r < rows; r++) product[r] += x->added[token + t];
        if (m->out) transform_outputs(m->out, product, panel * PANEL, rows);
    }
}

static void finish_panels(const Matrix *m, int panel, int panels, int tokens, const float *products, int products_stride, float *outputs,
                          int stride, Finish finish) {
    const int first = panel * PANEL, left = m->rows - first, rows = left < panels * PANEL ? left : panels * PANEL;
    for (int t = 0; t < tokens; t++) {
        const float *p = products + t * products_stride;
        float *y = outputs + (size_t)t * stride + first;
        int r = 0;
        for (; r + LANES <= rows; r += LANES) {
            vf product = vf_load(p + r), before = vf_load(y + r);
            if (m->bias) product += vf_load(m->bias + first + r);
            if (finish == ADD) product += before;
            if (finish == GATE) product *= before / (1.0f + vf_exp(-before));
            vf_store(y + r, product);
        }
        for (; r < rows; r++) {
            float product = p[r] + (m->bias ? m->bias[first + r] : 0);
            if (finish == ADD) product += y[r];
            if (finish == GATE) product *= y[r] / (1.0f + vf_exp(-vf_set(y[r]))[0]);
            y[r] = product;
        }
    }
}

int panels_together(const Matrix *m) { return m->out && m->out->block > PANEL ? m->out->block / PANEL : 1; }

static void multiply_halves(const Matrix *m, int begin, int end, const Inputs *x, float *outputs, int stride, Finish finish) {
    const int wide = x->tokens >= WIDE_TOKENS, most = wide ? wide_panels() : 4, rows = most * PANEL;
    float products[MOST_WIDE * rows];
    for (int panel = begin, panels; panel < end; panel += panels) {
        const uint16_t *halves = (const uint16_t *)m->data + (size_t)panel * m->columns * PANEL;
        panels = end - panel < most ? end - panel : most;
        for (int t = 0, tile; t < x->tokens; t += tile) {
            const float *values = x->values + (size_t)t * x->columns;
            tile = x->tokens - t < MOST_WIDE ? x->tokens - t : MOST_WIDE;
            (wide ? wide_dots : half_dots)(halves, panels, m->columns, values, x->columns, tile, products, rows);
            finish_panels(m, panel, panels, tile, products, rows, outputs + (size_t)t * stride, stride, finish);
        }
    }
}

static void multiply_codes(const Matrix *m, int begin, int end, const Inputs *x, float *outputs, int stride, Finish finish) {
    const int together = panels_together(m), most = x->tokens == 1 || together > PANELS ? together : PANELS, rows = most * PANEL;
    float products[CODE_TILE * rows];
    for (int panel = begin, panels; panel < end; panel += panels) {
        panels = end - panel < most ? end - panel : most;
        for (int t = 0, tile; t < x->tokens; t += tile) {
            tile = tile_of(x->tokens - t);
            code_panels(m, panel, panels, x, t, tile, products);
            finish_panels(m, panel, panels, tile, products, panels * PANEL, outputs + (size_t)t * stride, stride, finish);
        }
    }
}

// Where a thread's share begins that would begin at panel `at`: between panels that belong together.
static int share_begin(const Matrix *m, int at, int panels) {
    const int together = panels_together(m);
    at = at < 0 ? 0 : at > panels ? panels : at;
    return (at + together / 2) / together * together;
}

void multiply_share(Worker worker, int count, const Matrix *const *matrices, const Inputs *inputs, float *const *outputs,
                    const int *strides, Finish finish) {
    int total = 0, before = 0;
    for (int i = 0; i < count; i++) total += (matrices[i]->rows + PANEL - 1) / PANEL;
    const int from = (int)((long)total * worker.index / worker.count), to = (int)((long)total * (worker.index + 1) / worker.count);
    for (int i = 0; i < count; i++) {
        const int panels = (matrices[i]->rows + PANEL - 1) / PANEL;
        const int begin = share_begin(matrices[i], from - before, panels), end = share_begin(matrices[i], to - before, panels);
        if (begin < end)
            (matrices[i]->bits == HALF ? multiply_halves : multiply_codes)(matrices[i], begin, end, inputs, outputs[i], strides[i], finish);
        before += panels;
    }
}

void read_row(const Matrix *m, int row, float *out) {
    const int panel = row / PANEL, r = row % PANEL;
    if (m->bits == HALF) {
        const uint16_t *line = (const uint16_t *)m->data + (size_t)panel * m->columns * PANEL + r;
        for (int k = 0; k < m->columns; k++) out[k] = half_to_float(line[k * PANEL]);
        return;
    }
    const int per_line = 32 / m->bits, groups = m->columns / m->group;
    const uint8_t *lines = (const uint8_t *)m->data + (size_t)panel * m->columns * PANEL * m->bits / 8;
    const uint8_t *steps = m->steps ? m->steps + (size_t)panel * m->columns / NESTED_GROUP * PANEL + r : NULL;
    for (int k = 0; k < groups * m->group; k++) {
        const uint8_t byte = lines[k / per_line * 64 + 4 * r + k % 4];
        const int code = byte >> (m->bits * (k % per_line / 4)) & ((1 << m->bits) - 1);
        const size_t at = ((size_t)panel * groups + k / m->group) * PANEL + r;
        const float scale = half_to_float(m->scale[at]);
        if (steps) {
            const int step = steps[k / NESTED_GROUP * PANEL];
            out[k] = scale * (step & 15) * code - half_to_float(m->minimum[at]) * (step >> 4);
        } else out[k] = scale * (code - (m->zeros ? m->zeros[at] : m->zero));
    }
}
