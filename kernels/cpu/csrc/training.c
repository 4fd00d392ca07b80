#include "training.h"

#include "simd.h"

typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

// bfloat16, rounded to nearest, ties to even; what is not a number stays so.
INLINE void store_value(void *to, int64_t at, int half, vf v) {
    if (!half) {
        vf_store((float *)to + at, v);
        return;
    }
    vu bits = (vu)v;
    vh rounded = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, vh);
    memcpy((uint16_t *)to + at, &rounded, sizeof rounded);
}

INLINE vf load_value(const void *from, int64_t at, int half) {
    if (!half) return vf_load((const float *)from + at);
    vh bits;
    memcpy(&bits, (const uint16_t *)from + at, sizeof bits);
    return (vf)(__builtin_convertvector(bits, vu) << 16);
}

INLINE vf clamp(vf v, float low, float high) {
    v = vf_pick(v < vf_set(low), vf_set(low), v);
    return vf_pick(v > vf_set(high), vf_set(high), v);
}

INLINE vf floor_small(vf v) {  // of values that fit an int32; NaN stays
    vf whole = vf_of(vi_round(v));
    return whole - vf_pick(whole > v, vf_set(1), vf_set(0)) + (v - v);
}

static void forward_group(const FakeQuant *t, int64_t at, float scale, const float *offset) {
    const float low = offset ? 0 : -t->levels / 2, high = low + t->levels - 1;
    for (int64_t i = at; i < at + t->group; i += LANES) {
        vf weight = vf_load(t->weight + i);
        if (offset) {
            vf code = floor_small(clamp((weight + *offset) / vf_set(scale) + 0.5f, low, high + 0.5f));
            store_value(t->quantized, i, t->half, code * scale - *offset);
        } else {
            vf code = floor_small(clamp(weight / vf_set(scale), low, high + 0.5f));
            store_value(t->quantized, i, t->half, (code + 0.5f) * scale);
        }
    }
}

static void backward_group(const FakeQuant *t, int64_t at, int64_t group, float scale, const float *offset) {
    const float middle = offset ? (t->levels - 1) / 2.0f * scale - *offset : 0;
    const float limit = scale * (t->levels / 2.0f * t->share);
    vf by_scale = vf_set(0), clipped = vf_set(0);
    for (int64_t i = at; i < at + t->group; i += LANES) {
        vf weight = vf_load(t->weight + i), arriving = load_value(t->gradient, i, t->half);
        vf centred = weight - middle;
        vi inside = (centred <= vf_set(limit)) & (centred >= vf_set(-limit));
        vf flowing = vf_pick(inside, arriving, vf_set(0));
        vf_store(t->weight_gradient + i, flowing);
        by_scale += arriving * load_value(t->quantized, i, t->half) - flowing * weight;
        clipped += flowing - arriving;
    }
    t->scale_gradient[group] = vf_sum(by_scale);
    if (t->zero_gradient) t->zero_gradient[group] = vf_sum(clipped) * scale;
}

static void rows_of(Worker me, const FakeQuant *t, int *first, int *last) {
    *first = (int)((int64_t)t->rows * me.index / me.count);
    *last = (int)((int64_t)t->rows * (me.index + 1) / me.count);
}

static void forward_rows(Worker me, void *argument) {
    const FakeQuant *t = argument;
    const int groups = t->columns / t->group;
    int first, last;
    rows_of(me, t, &first, &last);
    for (int64_t g = (int64_t)first * groups; g < (int64_t)last * groups; g++)
        forward_group(t, g * t->group, t->scale[g], t->offset ? t->offset + g : NULL);
}

static void backward_rows(Worker me, void *argument) {
    const FakeQuant *t = argument;
    const int groups = t->columns / t->group;
    int first, last;
    rows_of(me, t, &first, &last);
    for (int64_t g = (int64_t)first * groups; g < (int64_t)last * groups; g++)
        backward_group(t, g * t->group, g, t->scale[g], t->offset ? t->offset + g : NULL);
}

int32_t fake_quantize(const FakeQuant *task, Team team, int32_t threads) {
    return run_on(team, threads, forward_rows, (void *)task);
}

int32_t fake_quantize_backward(const FakeQuant *task, Team team, int32_t threads) {
    return run_on(team, threads, backward_rows, (void *)task);
}
