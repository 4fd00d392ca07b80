// What surrounds a packed matrix, on activations: signs or factors, block Hadamards and the 4 x 4 lattice
// (kernels/transform.py has the formula).
#pragma once

#include <stdint.h>

typedef struct {
    int32_t block;        // of the Hadamard, a power of two; 1: none
    const float *scale;   // (columns), over the square root of block; or NULL
    const float *affine;  // (4, 4), or NULL
    const float *shift;   // (4), or NULL
} InputTransform;

typedef struct {
    int32_t block;        // as above; rows that are transformed together must be computed together
    const float *scale;   // (rows, in whole panels), over the square root of block; or NULL
} OutputTransform;

// Transform the values of one token, a multiple of 32, in place. Returns what is added to every product: values . shift.
float transform_inputs(const InputTransform *transform, float *values, int columns);

// Transform `rows` products of one token in place, whole panels that begin at row `first`.
void transform_outputs(const OutputTransform *transform, float *products, int first, int rows);
