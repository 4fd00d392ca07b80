// Products with matrices of 2-bit codes whose scales have two levels, as GGUF's Q2_K:
// weight = scale * (step & 15) * code - minimum * (step >> 4).
//
// scale and minimum are of `group` columns of a row; a step is of NESTED_GROUP of them, which are those of one line.
#pragma once

#include "matrix.h"

// The rows of one panel times tokens token ... token + tokens - 1 (CODE_TILE at most): out (tokens, 16), stride apart.
void nested_panel(const Matrix *m, int panel, const Inputs *x, int token, int tokens, float *out, int stride);
