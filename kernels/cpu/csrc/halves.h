// Products with panels of 16-bit floats. One sum per row and token, in the order of the columns, however many of either
// are computed together.
#pragma once

#include <stdint.h>

// Dot products of `tokens` vectors, `stride` apart, with the rows of half-precision panels that follow each other:
// out (tokens, 16 * panels), its rows out_stride apart.
void half_dots(const uint16_t *panel, int panels, int columns, const float *values, int stride, int tokens, float *out, int out_stride);

#define WIDE_TOKENS 16  // so many tokens pay for widening a panel

// Panels that wide_dots takes at a time.
int wide_panels(void);

// The same for many tokens: the panels, wide_panels() at most, become 32-bit floats once for all of them.
void wide_dots(const uint16_t *panel, int panels, int columns, const float *values, int stride, int tokens, float *out, int out_stride);
