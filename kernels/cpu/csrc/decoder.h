// A whole decoder of the Llama family in one call: RMSNorm, grouped-query attention with rotary positions, SwiGLU.
//
// Any mix of rows (sequences) and positions may be in one call: a prompt is many positions of one row, a decoding
// step is one position of each row. What a token gets does not depend, to the bit, on what else is in the call.
#pragma once

#include <stdint.h>

#include "matrix.h"

typedef struct {
    Matrix query, key, value, output, gate, up, down;
    const float *input_norm, *post_norm;  // (hidden)
    const float *query_norm, *key_norm;   // (head_size), or NULL
    int32_t window;                       // positions that attention looks back on, itself included; 0: all
} Block;

typedef struct {
    int32_t hidden, blocks, heads, kv_heads, head_size, inner, vocabulary;
    int32_t span;             // of every matrix of codes that is not read exactly
    float epsilon;            // of the norms
    float attention_scale;
    const Block *block;
    const float *final_norm;  // (hidden)
    Matrix embedding, head;   // (vocabulary, hidden); may be the same data
} Model;

typedef struct Session Session;

// Keys and values of `rows` sequences of at most `length` tokens and what the last block gave for each of them, and room to compute with up to `threads` threads.
// cosine, sine: (length, head_size / 2), kept by the caller as long as the session. NULL where memory does not suffice.
Session *session_new(const Model *model, int32_t rows, int32_t length, int32_t threads, const float *cosine, const float *sine);
void session_free(Session *session);

// Read `tokens` tokens, the positions of a row in ascending order, and write the logits that follow the tokens number
// wanted[0] < wanted[1] < ... : logits (count, vocabulary).
// Returns 0; -1 where an argument is out of range (nothing was read then); -2 where threads cannot be made.
int32_t session_forward(Session *session, int32_t tokens, const int32_t *ids, const int32_t *rows, const int32_t *positions,
                        int32_t count, const int32_t *wanted, float *logits);

// The logits (count, vocabulary) that follow the tokens at the positions from `first` on of a row that were read before, to the
// same bits; only the head is computed. Returns as session_forward does.
int32_t session_recall(Session *session, int32_t row, int32_t first, int32_t count, float *logits);

// outputs (tokens, rows of the matrix) = inputs (tokens, columns) times the transposed matrix; columns as padded.
// The inputs are transformed in place. room: tokens * (2 * columns + 9 * columns / span + 4 * columns / NESTED_GROUP) bytes for 8-bit
// activations where span is not 0, and 4 * tokens more for a transform. Returns as session_forward does.
int32_t multiply(const Matrix *matrix, int32_t tokens, float *inputs, void *room, float *outputs, int32_t threads);

// Lay out a matrix. codes: (rows, columns * bits / 8) as stored, lowest bits first; or (rows, columns) 16-bit floats.
// data: the panels, zeroed by the caller; columns here are not padded.
void lay_out(int32_t bits, int32_t rows, int32_t columns, const void *codes, void *data);
