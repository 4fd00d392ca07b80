#include "halves.h"

#include <stddef.h>

#include "matrix.h"
#include "simd.h"

#define HALF_TILE 4  // tokens at a time
#define MANY_PANELS (LANES == 16 ? 4 : 2)

// LANES rows of each of P panels of halves, panel_size apart, times T tokens.
INLINE void half_tile(const int T, const int P, int columns, const uint16_t *lines, size_t panel_size, const float *values, size_t stride,
                      float *out, size_t out_stride) {
    vf total[HALF_TILE][4];
    for (int t = 0; t < T; t++)
        for (int p = 0; p < P; p++) total[t][p] = vf_set(0);
    for (int k = 0; k < columns; k++, lines += PANEL) {
        vf weights[4];
        for (int p = 0; p < P; p++) {
            __builtin_prefetch(lines + p * panel_size + 1024);
            weights[p] = vf_half(lines + p * panel_size);
        }
        for (int t = 0; t < T; t++) {
            vf value = vf_set(values[t * stride + k]);
            for (int p = 0; p < P; p++) total[t][p] = vfma(weights[p], value, total[t][p]);
        }
    }
    for (int t = 0; t < T; t++)
        for (int p = 0; p < P; p++) vf_store(out + t * out_stride + p * PANEL, total[t][p]);
}

#define HALF_PANELS(T, P)                                                                                       \
    for (; panels - p >= P; p += P)                                                                             \
        half_tile(T, P, columns, lines + p * size, size, values, stride, out + (size_t)p * PANEL, out_stride);

// A tile of tokens times LANES rows of every panel: as many panels at a time as there are registers for sums, because
// few sums would wait for themselves.
static void half_rows(int tile, int panels, int columns, const uint16_t *lines, const float *values, size_t stride, float *out,
                      size_t out_stride) {
    const size_t size = (size_t)columns * PANEL;
    int p = 0;
    switch (tile) {
        case 1: HALF_PANELS(1, 4) HALF_PANELS(1, 1) break;
        case 2: HALF_PANELS(2, 4) HALF_PANELS(2, 1) break;
        case 3: HALF_PANELS(3, MANY_PANELS) HALF_PANELS(3, 1) break;
        case 4: HALF_PANELS(4, MANY_PANELS) HALF_PANELS(4, 1) break;
    }
}

void half_dots(const uint16_t *panel, int panels, int columns, const float *values, int stride, int tokens, float *out, int out_stride) {
    for (int t = 0, tile; t < tokens; t += tile) {
        tile = tokens - t < HALF_TILE ? tokens - t : HALF_TILE;
        for (int part = 0; part < PANEL; part += LANES)
            half_rows(tile, panels, columns, panel + part, values + (size_t)t * stride, stride, out + (size_t)t * out_stride + part, out_stride);
    }
}

#define WIDE_ROWS (LANES == 16 ? 2 * PANEL : PANEL)
#define WIDE_VECTORS (WIDE_ROWS / LANES)
#define WIDE_COLUMNS 128                                   // at a time: their floats stay in the first cache
#define WIDE_TILE (LANES == 16 ? 8 : LANES == 8 ? 6 : 2)  // tokens at a time, as many as registers hold sums for

int wide_panels(void) { return WIDE_ROWS / PANEL; }

// out (WIDE_TILE, WIDE_ROWS) += values (WIDE_TILE, columns) times widened columns, from zero on where they are the first.
static void wide_tile(int first, int columns, const float *weights, const float *values, size_t stride, float *out,
                      size_t out_stride) {
    vf total[WIDE_TILE][WIDE_VECTORS];
    for (int t = 0; t < WIDE_TILE; t++)
        for (int v = 0; v < WIDE_VECTORS; v++) total[t][v] = first ? vf_set(0) : vf_load(out + t * out_stride + v * LANES);
    for (int k = 0; k < columns; k++, weights += WIDE_ROWS) {
        vf weight[WIDE_VECTORS];
        for (int v = 0; v < WIDE_VECTORS; v++) weight[v] = vf_load(weights + v * LANES);
        for (int t = 0; t < WIDE_TILE; t++) {
            const vf value = vf_set(values[t * stride + k]);
            for (int v = 0; v < WIDE_VECTORS; v++) total[t][v] = vfma(weight[v], value, total[t][v]);
        }
    }
    for (int t = 0; t < WIDE_TILE; t++)
        for (int v = 0; v < WIDE_VECTORS; v++) vf_store(out + t * out_stride + v * LANES, total[t][v]);
}

// Columns of the panels as floats, a line of WIDE_ROWS after the other; the rows of panels that are not there are zeros.
static void widen(const uint16_t *panel, int panels, size_t panel_size, int columns, float *weights) {
    for (int k = 0; k < columns; k++, panel += PANEL)
        for (int row = 0; row < WIDE_ROWS; row += LANES, weights += LANES) {
            const int p = row / PANEL;
            vf_store(weights, p < panels ? vf_half(panel + p * panel_size + row % PANEL) : vf_set(0));
        }
}

void wide_dots(const uint16_t *panel, int panels, int columns, const float *values, int stride, int tokens, float *out, int out_stride) {
    const int whole = tokens / WIDE_TILE * WIDE_TILE;  // the others are too few
    _Alignas(64) float weights[WIDE_COLUMNS * WIDE_ROWS];
    for (int first = 0; first < columns; first += WIDE_COLUMNS) {
        const int here = columns - first < WIDE_COLUMNS ? columns - first : WIDE_COLUMNS;
        widen(panel + (size_t)first * PANEL, panels, (size_t)columns * PANEL, here, weights);
        for (int t = 0; t < whole; t += WIDE_TILE)
            wide_tile(first == 0, here, weights, values + (size_t)t * stride + first, stride, out + (size_t)t * out_stride, out_stride);
    }
    half_dots(panel, panels, columns, values + (size_t)whole * stride, stride, tokens - whole, out + (size_t)whole * out_stride, out_stride);
}
