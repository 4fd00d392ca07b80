// Fake quantization of a weight while it is trained (upq/layers/fake.py has the definition): one pass over memory
// forward and one backward, where separate operations make a dozen.
#pragma once

#include <stdint.h>

#include "threads.h"

typedef struct {
    int32_t rows, columns, group;  // group: columns that share a scale, a multiple of 16
    int32_t levels, half;          // half: 1 where quantized and gradient are bfloat16, 0 for float
    float share;                   // of the range beyond which a weight counts as clipped
    const float *weight;           // (rows, columns)
    const float *scale;            // (rows, groups)
    const float *offset;           // (rows, groups): a level is scale * code - offset; NULL: zero in the middle of the codes
    void *quantized;               // (rows, columns), written forward, read backward
    const void *gradient;          // (rows, columns): of the loss by quantized
    float *weight_gradient;        // (rows, columns)
    float *scale_gradient;         // (rows, groups): by the logarithm of the scale
    float *zero_gradient;          // (rows, groups): by offset / scale; or NULL
} FakeQuant;

// Both are run_on with this team, and return as it does.
int32_t fake_quantize(const FakeQuant *task, Team team, int32_t threads);
int32_t fake_quantize_backward(const FakeQuant *task, Team team, int32_t threads);
