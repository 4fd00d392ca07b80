// A weight matrix as the kernels read it, and products with it.
//
// Rows lie in panels of 16. A panel is a row of lines, each one the same few columns of all 16 rows, so that a lane
// of a vector is a row and no sum ever crosses lanes:
//   codes of 2, 4 or 8 bits: a line has 64 bytes; byte 4 r + j holds, lowest bits first, the codes of row r in
//       columns j, 4 + j, 8 + j, ... of the line's 16, 8 or 4 columns;
//   16-bit floats: a line has 32 bytes, one column.
// weight = scale * (code - zero), one scale of any sign for 16 rows x `group` columns in [panel][group][row] order; or with
// two levels of scales what nested.h says.
#pragma once

#include <stdint.h>

#include "threads.h"
#include "transform.h"

#define PANEL 16
#define NESTED_GROUP 16  // columns that share a pair of steps, where scales have two levels: those of a line of 2-bit codes

enum { HALF = 16 };  // Matrix.bits of a matrix of 16-bit floats

typedef struct {
    int32_t bits;           // 2, 4, 8, or HALF
    int32_t rows, columns;  // columns: padded to a multiple of 32 for codes; the padding is multiplied by zeros
    int32_t group;          // columns that share a scale: a multiple of 32, or of NESTED_GROUP where there are steps
    int32_t span;           // columns that share a scale of the 8-bit activations: 32; 0: activations stay floats
    float zero;             // the same everywhere, unless zeros is given
    const void *data;
    const uint16_t *scale;  // 16-bit floats
    const uint8_t *zeros;   // laid out as scale, or NULL
    const uint16_t *minimum;  // laid out as scale, where there are steps
    const uint8_t *steps;     // [panel][line][row], two of 4 bits each; or NULL: scales have one level
    const float *bias;      // (rows), or NULL; added to what the output transform gives
    const InputTransform *in;    // of a matrix of codes, or NULL; matrices with equal ones have the same one
    const OutputTransform *out;  // of a matrix of codes, or NULL
} Matrix;

// A token's spans are rounded to 8 bits, and what is left of its coarsest ones to 8 bits more: a few large activations, which
// a rotation spreads over all of their block, would drown what else the block holds.
#define REST 254         // the steps of the rest in one of the codes'
#define FINE_SHARE 3.0f  // a span is fine whose squared scale is more than this many times the token's mean

// Activations of `tokens` tokens, as both kinds of matrix read them.
typedef struct {
    int tokens, columns, span;
    float *values;   // (tokens, columns)
    int8_t *codes;   // (tokens, columns): values / scale, rounded; like all but values and added only where span is not 0
    int8_t *rest;    // (tokens, columns): in fine spans what the rounding left, times REST / scale, rounded; else zeros
    int8_t *fine;    // (tokens, columns / span): whether the span is
    float *scale;    // (tokens, columns / span)
    float *sum;      // (tokens, columns / span): sum of codes + rest / REST
    float *group_sum;  // (tokens, columns / NESTED_GROUP): the same of fewer columns, times the scale
    float *added;    // (tokens): what is added to every product, where the input transform has a shift
} Inputs;

// What becomes of a product p in the place y: y = p, y = y + p, or y = silu(y) * p.
typedef enum { STORE, ADD, GATE } Finish;

// Transform the values of one token as the matrix wants them, and fill its codes, scale and sums where it is asked for. The padding
// behind the values of a token is zero.
void prepare_token(Inputs *inputs, int token, const Matrix *matrix, int as_codes);

// Panels whose rows one thread computes together.
int panels_together(const Matrix *matrix);

// This thread's share of outputs (tokens, stride) = inputs times the matrix, for `count` matrices at once, whose input transform
// the inputs have.
void multiply_share(Worker worker, int count, const Matrix *const *matrices, const Inputs *inputs, float *const *outputs,
                    const int *strides, Finish finish);

// Row `row` of a matrix as floats.
void read_row(const Matrix *matrix, int row, float *out);
