#include "transform.h"

#include "simd.h"

// x[i] + x[i + half] and x[i] - x[i + half] for every pair of lanes.
INLINE vf butterfly(vf x, vi lane, int half) {
    return vf_lanes(x, lane ^ half) + vf_pick((lane & half) == 0, x, -x);
}

// The block Hadamard without its factor, by sums and differences of pairs: first inside vectors, then between them.
static void hadamard(float *x, int count, int block) {
    const vi lane = LANE_NUMBERS;
    for (int i = 0; i < count; i += LANES) {
        vf v = vf_load(x + i);
#pragma GCC unroll 4
        for (int half = 1; half < LANES; half *= 2)
            if (half < block) v = butterfly(v, lane, half);
        vf_store(x + i, v);
    }
    for (int half = LANES; half < block; half *= 2)
        for (int first = 0; first < count; first += 2 * half)
            for (int i = first; i < first + half; i += LANES) {
                const vf a = vf_load(x + i), b = vf_load(x + i + half);
                vf_store(x + i, a + b);
                vf_store(x + i + half, a - b);
            }
}

static void times(float *x, const float *scale, int count) {
    for (int i = 0; i < count; i += LANES) vf_store(x + i, vf_load(x + i) * vf_load(scale + i));
}

INLINE vf repeat_four(const float *four) {
    vf v;
    for (int i = 0; i < LANES; i++) v[i] = four[i % 4];
    return v;
}

float transform_inputs(const InputTransform *transform, float *values, int columns) {
    if (transform->scale) times(values, transform->scale, columns);
    if (transform->block > 1) hadamard(values, columns, transform->block);
    float added = 0;
    if (transform->shift) {
        const vf shift = repeat_four(transform->shift);
        vf sum = vf_set(0);
        for (int i = 0; i < columns; i += LANES) sum = vfma(vf_load(values + i), shift, sum);
        added = vf_sum(sum);
    }
    if (transform->affine) {
        const vi group = (vi)LANE_NUMBERS & ~3;
        vf row[4];
        for (int k = 0; k < 4; k++) row[k] = repeat_four(transform->affine + 4 * k);
        for (int i = 0; i < columns; i += LANES) {
            const vf v = vf_load(values + i);
            vf sum = vf_lanes(v, group) * row[0];
            for (int k = 1; k < 4; k++) sum = vfma(vf_lanes(v, group | k), row[k], sum);
            vf_store(values + i, sum);
        }
    }
    return added;
}

void transform_outputs(const OutputTransform *transform, float *products, int first, int rows) {
    if (transform->block > 1) hadamard(products, rows, transform->block);
    if (transform->scale) times(products, transform->scale + first, rows);
}
