#include "decoder.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "halves.h"
#include "simd.h"

#define CHUNK 128  // tokens computed together
#define TILE 8     // queries that share a pass over the keys
#define LARGEST_HEAD 256

typedef struct {
    int32_t first, count;  // consecutive tokens of one row
} Run;

struct Session {
    const Model *model;
    int32_t rows, length, padded, threads;  // padded: length in whole panels
    const float *cosine, *sine;
    uint16_t *keys;    // [block][row][kv head][panel of 16 positions][head_size][16]
    uint16_t *values;  // [block][row][kv head][position][head_size]
    float *read;       // [row][position][hidden]: what the last block gave for each token that was read
    float *hidden;     // (CHUNK, hidden)
    float *query, *key, *value, *mixed, *inner;
    float *scores;     // per thread: (TILE, padded)
    Inputs *inputs;    // one for a chunk, and for a lone token one per thread
    Run *runs;
    // the present chunk
    int tokens, run_count, count;
    const int32_t *ids, *row, *position, *wanted;
    const float *told;  // (count, hidden): of which the head makes logits
    float *logits;
};

static int padded32(int n) { return (n + 31) / 32 * 32; }
static int largest(int a, int b) { return a > b ? a : b; }
static size_t row_size(const Session *s) { return (size_t)s->padded * s->model->head_size; }
static size_t cache_at(const Session *s, int block, int row, int kv_head) {
    return (((size_t)block * s->rows + row) * s->model->kv_heads + kv_head) * row_size(s);
}
static float *read_at(const Session *s, int row, int position) {
    return s->read + ((size_t)row * s->length + position) * s->model->hidden;
}

static int make_inputs(Inputs *inputs, int tokens, int columns, int span) {
    const size_t size = (size_t)tokens * columns, spans = span ? size / span : 1;
    inputs->tokens = tokens;
    inputs->span = span;
    inputs->values = calloc(size, sizeof(float));
    inputs->codes = calloc(size, 1);
    inputs->rest = calloc(size, 1);
    inputs->fine = calloc(spans, 1);
    inputs->scale = calloc(spans, sizeof(float));
    inputs->sum = calloc(spans, sizeof(float));
    inputs->group_sum = calloc(size / NESTED_GROUP, sizeof(float));
    inputs->added = calloc(tokens, sizeof(float));
    return inputs->values && inputs->codes && inputs->rest && inputs->fine && inputs->scale && inputs->sum && inputs->group_sum &&
           inputs->added;
}

Session *session_new(const Model *m, int32_t rows, int32_t length, int32_t threads, const float *cosine, const float *sine) {
    if (rows < 1 || length < 1 || threads < 1 || threads > MAX_THREADS) return NULL;
    Session *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    const int q = m->heads * m->head_size, kv = m->kv_heads * m->head_size;
    const int widest = padded32(largest(largest(m->hidden, m->inner), q));
    s->model = m;
    s->rows = rows;
    s->length = length;
    s->padded = (length + PANEL - 1) / PANEL * PANEL;
    s->threads = threads;
    s->cosine = cosine;
    s->sine = sine;
    const size_t cache = cache_at(s, m->blocks, 0, 0);
    s->keys = calloc(cache, sizeof(uint16_t));
    s->values = calloc(cache, sizeof(uint16_t));
    s->read = calloc((size_t)rows * length * m->hidden, sizeof(float));
    s->hidden = calloc((size_t)CHUNK * m->hidden, sizeof(float));
    s->query = calloc((size_t)CHUNK * q, sizeof(float));
    s->key = calloc((size_t)CHUNK * kv, sizeof(float));
    s->value = calloc((size_t)CHUNK * kv, sizeof(float));
    s->mixed = calloc((size_t)CHUNK * q, sizeof(float));
    s->inner = calloc((size_t)CHUNK * m->inner, sizeof(float));
    s->scores = calloc((size_t)threads * TILE * s->padded, sizeof(float));
    s->runs = calloc(CHUNK, sizeof(Run));
    s->inputs = calloc(threads + 1, sizeof(Inputs));
    int whole = s->keys && s->values && s->read && s->hidden && s->query && s->key && s->value && s->mixed && s->inner &&
                s->scores && s->runs && s->inputs;
    for (int t = 0; whole && t <= threads; t++) whole = make_inputs(&s->inputs[t], t < threads ? 1 : CHUNK, widest, m->span);
    if (whole) return s;
    session_free(s);
    return NULL;
}

void session_free(Session *s) {
    if (!s) return;
    for (int t = 0; s->inputs && t <= s->threads; t++) {
        free(s->inputs[t].values);
        free(s->inputs[t].codes);
        free(s->inputs[t].rest);
        free(s->inputs[t].fine);
        free(s->inputs[t].scale);
        free(s->inputs[t].sum);
        free(s->inputs[t].group_sum);
        free(s->inputs[t].added);
    }
    void *parts[] = {s->keys,  s->values, s->read,  s->hidden, s->query, s->key,
                     s->value, s->mixed,  s->inner, s->scores, s->runs,  s->inputs};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
    free(s);
}

// out = x * weight / rms(x); size values.
static void rms_norm(const float *x, const float *weight, int size, float epsilon, float *out) {
    vf squares = vf_set(0);
    float rest = 0;
    int i = 0;
    for (; i + LANES <= size; i += LANES) squares = vfma(vf_load(x + i), vf_load(x + i), squares);
    for (; i < size; i++) rest += x[i] * x[i];
    const float scale = 1 / sqrtf((vf_sum(squares) + rest) / size + epsilon);
    for (i = 0; i + LANES <= size; i += LANES) vf_store(out + i, vf_load(x + i) * scale * vf_load(weight + i));
    for (; i < size; i++) out[i] = x[i] * scale * weight[i];
}

static int reads_codes(const Matrix *m) { return m->bits != HALF && m->span; }

// The inputs of the next products: `width` values a token of `from`, normed where a weight is given, transformed as the
// `count` readers want them, in 8 bits where a matrix of codes reads them. For a lone token every thread makes its own, which is
// quicker than to wait for one.
static Inputs *read_inputs(Session *s, Worker me, const float *from, int width, const float *norm, int tokens, int count,
                           const Matrix *const *readers) {
    const int alone = tokens == 1;
    int as_codes = 0;
    for (int i = 0; i < count; i++) as_codes |= reads_codes(readers[i]);
    Inputs *in = &s->inputs[alone ? me.index : s->threads];
    const int columns = padded32(width);
    if (alone || me.index == 0) {
        in->tokens = tokens;
        in->columns = columns;
    }
    if (!alone) barrier(me);
    for (int t = alone ? 0 : me.index; t < tokens; t += alone ? 1 : me.count) {
        float *to = in->values + (size_t)t * columns;
        const float *x = from + (size_t)t * width;
        if (norm) rms_norm(x, norm, width, s->model->epsilon, to);
        else memcpy(to, x, width * sizeof(float));
        memset(to + width, 0, (columns - width) * sizeof(float));
        prepare_token(in, t, readers[0], as_codes);
    }
    if (!alone) barrier(me);
    return in;
}

// Turn pairs (i, i + half) of a head by the angles of its position.
static void rotate(const Session *s, float *head, int position) {
    const int half = s->model->head_size / 2;
    const float *cosine = s->cosine + (size_t)position * half, *sine = s->sine + (size_t)position * half;
    for (int i = 0; i < half; i++) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i] + a * sine[i];
    }
}

// Norm and turn the queries and keys of this thread's heads, and store keys and values.
static void store_heads(Session *s, Worker me, int block) {
    const Model *m = s->model;
    const Block *b = &m->block[block];
    const int size = m->head_size, per_token = m->heads + m->kv_heads;
    for (int item = me.index; item < s->tokens * per_token; item += me.count) {
        const int token = item / per_token, position = s->position[token];
        int head = item % per_token;
        if (head < m->heads) {
            float *query = s->query + ((size_t)token * m->heads + head) * size;
            if (b->query_norm) rms_norm(query, b->query_norm, size, m->epsilon, query);
            rotate(s, query, position);
            continue;
        }
        head -= m->heads;
        float *key = s->key + ((size_t)token * m->kv_heads + head) * size;
        const float *value = s->value + ((size_t)token * m->kv_heads + head) * size;
        if (b->key_norm) rms_norm(key, b->key_norm, size, m->epsilon, key);
        rotate(s, key, position);
        const size_t at = cache_at(s, block, s->row[token], head);
        uint16_t halves[PANEL], *panel = s->keys + at + (size_t)(position / PANEL) * PANEL * size + position % PANEL;
        for (int i = 0; i < size; i += LANES) {
            vf_store_half(halves, vf_load(key + i));
            for (int j = 0; j < LANES; j++) panel[(size_t)(i + j) * PANEL] = halves[j];
            vf_store_half(s->values + at + (size_t)position * size + i, vf_load(value + i));
        }
    }
}

// Weights exp(score - largest) of the positions from..to and 0 for the others up to `end`; returns their sum.
static float softmax(float *scores, int begin, int from, int to, int end) {
    for (int p = begin; p < from; p++) scores[p] = -INFINITY;
    for (int p = to + 1; p < end; p++) scores[p] = -INFINITY;
    vf most = vf_set(-INFINITY), sum = vf_set(0);
    for (int p = begin; p < end; p += LANES) most = vf_max(most, vf_load(scores + p));
    most = vf_set(vf_largest(most));
    for (int p = begin; p < end; p += LANES) {
        vf weight = vf_exp(vf_load(scores + p) - most);
        sum += weight;
        vf_store(scores + p, weight);
    }
    return vf_sum(sum);
}

#define WIDE (LANES == 16 ? 4 : 2)  // vectors of a head at a time

// out (T, D vectors) = weights (T, positions) times values (positions, size).
INLINE void mix_tile(const int T, const int D, const float *weights, size_t stride, const uint16_t *values, int size, int from, int to,
                     const float *sums, float *out) {
    vf total[4][WIDE];
    for (int t = 0; t < T; t++)
        for (int d = 0; d < D; d++) total[t][d] = vf_set(0);
    for (int p = from; p <= to; p++) {
        vf value[WIDE];
        for (int d = 0; d < D; d++) value[d] = vf_half(values + (size_t)p * size + d * LANES);
        for (int t = 0; t < T; t++) {
            vf weight = vf_set(weights[t * stride + p]);
            for (int d = 0; d < D; d++) total[t][d] = vfma(weight, value[d], total[t][d]);
        }
    }
    for (int t = 0; t < T; t++)
        for (int d = 0; d < D; d++) vf_store(out + t * size + d * LANES, total[t][d] * (1 / sums[t]));
}

INLINE void mix_rows(const int T, const float *weights, size_t stride, const uint16_t *values, int size, int from, int to,
                     const float *sums, float *out) {
    int d = 0;
    for (; d + WIDE * LANES <= size; d += WIDE * LANES) mix_tile(T, WIDE, weights, stride, values + d, size, from, to, sums, out + d);
    for (; d < size; d += LANES) mix_tile(T, 1, weights, stride, values + d, size, from, to, sums, out + d);
}

static void mix_values(int queries, const float *weights, size_t stride, const uint16_t *values, int size, int from, int to,
                       const float *sums, float *out) {
    for (int q = 0, tile; q < queries; q += tile) {
        tile = queries - q < 4 ? queries - q : 4;
        const float *w = weights + q * stride;
        switch (tile) {
            case 1: mix_rows(1, w, stride, values, size, from, to, sums + q, out + q * size); break;
            case 2: mix_rows(2, w, stride, values, size, from, to, sums + q, out + q * size); break;
            case 3: mix_rows(3, w, stride, values, size, from, to, sums + q, out + q * size); break;
            case 4: mix_rows(4, w, stride, values, size, from, to, sums + q, out + q * size); break;
        }
    }
}

// Attention of `heads` heads from `head` on, which share keys and values, for the tokens of a run.
static void attend(Session *s, Worker me, int block, Run run, int head, int heads) {
    const Model *m = s->model;
    const int size = m->head_size, shared = m->heads / m->kv_heads, window = m->block[block].window;
    const size_t at = cache_at(s, block, s->row[run.first], head / shared);
    float *scores = s->scores + (size_t)me.index * TILE * s->padded;
    float queries[TILE * LARGEST_HEAD], mixed[TILE * LARGEST_HEAD], sums[TILE];
    const int count = run.count * heads, last = s->position[run.first + run.count - 1];
    const int first = window ? largest(0, s->position[run.first] - window + 1) : 0;
    const int begin = first / PANEL * PANEL, end = (last / PANEL + 1) * PANEL;
    for (int i = 0; i < count; i++) {
        const float *query = s->query + ((size_t)(run.first + i / heads) * m->heads + head + i % heads) * size;
        for (int k = 0; k < size; k++) queries[i * size + k] = query[k] * m->attention_scale;
    }
    half_dots(s->keys + at + (size_t)begin * size, (end - begin) / PANEL, size, queries, size, count, scores + begin, s->padded);
    for (int i = 0; i < count; i++) {
        const int position = s->position[run.first + i / heads];
        const int from = window ? largest(0, position - window + 1) : 0;
        sums[i] = softmax(scores + (size_t)i * s->padded, begin, from, position, end);
    }
    mix_values(count, scores, s->padded, s->values + at, size, first, last, sums, mixed);
    for (int i = 0; i < count; i++) {
        float *to = s->mixed + ((size_t)(run.first + i / heads) * m->heads + head + i % heads) * size;
        memcpy(to, mixed + i * size, size * sizeof(float));
    }
}

// Whether heads that share keys go together: each further head then costs about a third, because the keys and values
// are read already, but there are fewer pieces of work to divide.
static int go_together(const Session *s, int threads) {
    const int shared = s->model->heads / s->model->kv_heads;
    const int pieces = s->run_count * s->model->kv_heads, rounds = (pieces + threads - 1) / threads;
    return rounds * (shared + 2) <= 3 * ((pieces * shared + threads - 1) / threads);
}

static void attend_share(Session *s, Worker me, int block) {
    const Model *m = s->model;
    const int together = go_together(s, me.count) ? m->heads / m->kv_heads : 1;
    int item = 0;
    for (int r = 0; r < s->run_count; r++)
        for (int head = 0; head < m->heads; head += together, item++) {
            if (item % me.count != me.index) continue;
            for (int h = 0; h < together; h += TILE)
                attend(s, me, block, s->runs[r], head + h, together - h < TILE ? together - h : TILE);
        }
}

// Queries, keys and values of all tokens; the three read the same inputs unless their transforms differ.
static void project_heads(Session *s, Worker me, const Block *b) {
    const Model *m = s->model;
    const int q = m->heads * m->head_size, kv = m->kv_heads * m->head_size;
    const Matrix *const matrices[] = {&b->query, &b->key, &b->value};
    float *const outputs[] = {s->query, s->key, s->value};
    const int strides[] = {q, kv, kv};
    for (int first = 0, next; first < 3; first = next) {
        for (next = first + 1; next < 3 && matrices[next]->in == matrices[first]->in;) next++;
        Inputs *in = read_inputs(s, me, s->hidden, m->hidden, b->input_norm, s->tokens, next - first, matrices + first);
        multiply_share(me, next - first, matrices + first, in, outputs + first, strides + first, STORE);
    }
}

// inner = silu(gate) * up. A thread multiplies what it has stored itself, unless its shares of the two differ.
static void open_gates(Session *s, Worker me, const Block *b) {
    const Model *m = s->model;
    const Matrix *const matrices[] = {&b->gate, &b->up};
    const int shared = b->gate.in == b->up.in;
    Inputs *in = read_inputs(s, me, s->hidden, m->hidden, b->post_norm, s->tokens, shared ? 2 : 1, matrices);
    multiply_share(me, 1, matrices, in, &s->inner, &m->inner, STORE);
    if (!shared) in = read_inputs(s, me, s->hidden, m->hidden, b->post_norm, s->tokens, 1, matrices + 1);
    if (panels_together(&b->gate) != panels_together(&b->up)) barrier(me);
    multiply_share(me, 1, matrices + 1, in, &s->inner, &m->inner, GATE);
}

// outputs (tokens, stride) = or += one matrix times `width` values a token of `from`.
static void project(Session *s, Worker me, const Matrix *matrix, const float *from, int width, const float *norm, int tokens,
                    float *outputs, int stride, Finish finish) {
    Inputs *in = read_inputs(s, me, from, width, norm, tokens, 1, &matrix);
    multiply_share(me, 1, &matrix, in, &outputs, &stride, finish);
}

static void run_block(Session *s, Worker me, int block) {
    const Model *m = s->model;
    const Block *b = &m->block[block];
    project_heads(s, me, b);
    barrier(me);
    store_heads(s, me, block);
    barrier(me);
    attend_share(s, me, block);
    barrier(me);
    project(s, me, &b->output, s->mixed, m->heads * m->head_size, NULL, s->tokens, s->hidden, m->hidden, ADD);
    barrier(me);
    open_gates(s, me, b);
    barrier(me);
    project(s, me, &b->down, s->inner, m->inner, NULL, s->tokens, s->hidden, m->hidden, ADD);
    barrier(me);
}

static void run_head(Worker me, void *argument) {
    Session *s = argument;
    const Model *m = s->model;
    project(s, me, &m->head, s->told, m->hidden, m->final_norm, s->count, s->logits, m->vocabulary, STORE);
}

static void run_chunk(Worker me, void *argument) {
    Session *s = argument;
    const Model *m = s->model;
    for (int t = me.index; t < s->tokens; t += me.count) {
        float row[m->embedding.columns];
        read_row(&m->embedding, s->ids[t], row);
        memcpy(s->hidden + (size_t)t * m->hidden, row, m->hidden * sizeof(float));
    }
    barrier(me);
    for (int block = 0; block < m->blocks; block++) run_block(s, me, block);
    for (int t = me.index; t < s->tokens; t += me.count)
        memcpy(read_at(s, s->row[t], s->position[t]), s->hidden + (size_t)t * m->hidden, m->hidden * sizeof(float));
    if (!s->count) return;
    barrier(me);
    for (int i = me.index; i < s->count; i += me.count) {
        const int t = s->wanted[i];
        memcpy(s->hidden + (size_t)i * m->hidden, read_at(s, s->row[t], s->position[t]), m->hidden * sizeof(float));
    }
    barrier(me);
    run_head(me, s);
}

// Cut the chunk into runs of tokens of one row, so that a run's queries fill a tile.
static void find_runs(Session *s) {
    const int shared = s->model->heads / s->model->kv_heads, most = largest(1, TILE / shared);
    s->run_count = 0;
    for (int t = 0; t < s->tokens; t++) {
        Run *run = &s->runs[s->run_count - 1];
        if (t == 0 || s->row[t] != s->row[t - 1] || run->count == most) s->runs[s->run_count++] = (Run){t, 1};
        else run->count++;
    }
}

static int in_range(const Session *s, int tokens, const int32_t *ids, const int32_t *rows, const int32_t *positions, int count,
                    const int32_t *wanted) {
    for (int t = 0; t < tokens; t++) {
        if (ids[t] < 0 || ids[t] >= s->model->vocabulary || rows[t] < 0 || rows[t] >= s->rows) return 0;
        if (positions[t] < 0 || positions[t] >= s->length) return 0;
        if (t && rows[t] == rows[t - 1] && positions[t] != positions[t - 1] + 1) return 0;
    }
    for (int i = 0; i < count; i++)
        if (wanted[i] < 0 || wanted[i] >= tokens || (i && wanted[i] <= wanted[i - 1])) return 0;
    return tokens > 0 && count >= 0;
}

int32_t session_forward(Session *s, int32_t tokens, const int32_t *ids, const int32_t *rows, const int32_t *positions,
                        int32_t count, const int32_t *wanted, float *logits) {
    if (!in_range(s, tokens, ids, rows, positions, count, wanted)) return -1;
    for (int first = 0, served = 0; first < tokens; first += CHUNK) {
        int32_t here[CHUNK];
        s->tokens = tokens - first < CHUNK ? tokens - first : CHUNK;
        s->ids = ids + first;
        s->row = rows + first;
        s->position = positions + first;
        s->wanted = here;
        s->told = s->hidden;
        s->logits = logits + (size_t)served * s->model->vocabulary;
        s->count = 0;
        while (served < count && wanted[served] < first + s->tokens) here[s->count++] = wanted[served++] - first;
        find_runs(s);
        if (run_job(s->threads, run_chunk, s)) return -2;
    }
    return 0;
}

int32_t session_recall(Session *s, int32_t row, int32_t first, int32_t count, float *logits) {
    if (row < 0 || row >= s->rows || first < 0 || first >= s->length || count < 1 || count > s->length - first) return -1;
    for (int done = 0; done < count; done += CHUNK) {
        s->count = count - done < CHUNK ? count - done : CHUNK;
        s->told = read_at(s, row, first + done);
        s->logits = logits + (size_t)done * s->model->vocabulary;
        if (run_job(s->threads, run_head, s)) return -2;
    }
    return 0;
}

typedef struct {
    const Matrix *matrix;
    Inputs inputs;
    float *outputs;
} Product;

static void run_product(Worker me, void *argument) {
    Product *p = argument;
    for (int t = me.index; t < p->inputs.tokens; t += me.count) prepare_token(&p->inputs, t, p->matrix, reads_codes(p->matrix));
    barrier(me);
    multiply_share(me, 1, &p->matrix, &p->inputs, &p->outputs, &p->matrix->rows, STORE);
}

int32_t multiply(const Matrix *matrix, int32_t tokens, float *inputs, void *room, float *outputs, int32_t threads) {
    if (tokens < 1 || threads < 1 || threads > MAX_THREADS) return -1;
    const size_t size = (size_t)tokens * matrix->columns, spans = matrix->span ? size / matrix->span : 0;
    float *added = room, *scale = added + (matrix->in ? tokens : 0), *sum = scale + spans, *group_sum = sum + spans;
    int8_t *codes = (int8_t *)(group_sum + (spans ? size / NESTED_GROUP : 0)), *rest = codes + (spans ? size : 0);
    int8_t *fine = rest + (spans ? size : 0);
    const Inputs all = {tokens, matrix->columns, matrix->span, inputs, codes, rest, fine, scale, sum, group_sum, added};
    Product product = {matrix, all, outputs};
    return run_job(threads, run_product, &product) ? -2 : 0;
}

void lay_out(int32_t bits, int32_t rows, int32_t columns, const void *codes, void *data) {
    const int padded = padded32(columns);
    if (bits == HALF) {
        for (int r = 0; r < rows; r++)
            for (int k = 0; k < columns; k++)
                ((uint16_t *)data)[((size_t)(r / PANEL) * padded + k) * PANEL + r % PANEL] = ((const uint16_t *)codes)[(size_t)r * columns + k];
        return;
    }
    const int per_line = 32 / bits, per_byte = 8 / bits, mask = (1 << bits) - 1;
    for (int r = 0; r < rows; r++) {
        const uint8_t *from = (const uint8_t *)codes + (size_t)r * columns * bits / 8;
        uint8_t *panel = (uint8_t *)data + (size_t)(r / PANEL) * padded * PANEL * bits / 8 + 4 * (r % PANEL);
        for (int k = 0; k < columns; k++) {
            const int code = from[k / per_byte] >> (bits * (k % per_byte)) & mask;
            panel[(size_t)(k / per_line) * 64 + k % 4] |= code << (bits * (k % per_line / 4));
        }
    }
}
