/* The selective scan, forward and backward, for one instruction set (ISA names it; library.c chooses).

   A task is one row and one block of channels; it walks over the row's frames in spans, and in a span over tiles of channels: a
   block is wide, so that few memory pages are in use at a time, and a tile small, so that it stays in the first-level cache. The lanes of a
   vector are channels; a few states (STATES) of each are held in registers. Training stores the state before each span; the
   backward pass computes the span's states again from there, then runs it backwards. */

#include <stdlib.h>

#include "tiles.h"

#define NAME_(name, isa) name##_##isa
#define NAME(name, isa) NAME_(name, isa)
/* Channels of a tile. Backward a wider one pays: the lanes of B's and C's gradients are summed once a tile. */
#define TILE_FORWARD 64
#define TILE_BACKWARD 256
#define STRIDE (TILE_BACKWARD + 16) /* floats from one frame of a tile to the next: no power of two, or frames would share cache sets */
#define APART 80 /* floats between buffers: at distances of 4 KiB a load waits for stores to another buffer */
/* Floats of the buffers, apart by what the compiler knows: the inner loops then need few pointers. */
#define TILE_FLOATS (SPAN * STRIDE + APART)
#define SPAN_FLOATS ((SPAN + 1) * STATES_BACKWARD * LANES)
/* Of the workspace: from dt to the other tiles, from states to what else is kept of a span. */
enum { AT_U = TILE_FLOATS, AT_Y = 2 * TILE_FLOATS, AT_GRAD_Y = 5 * TILE_FLOATS, AT_GRAD_U = 6 * TILE_FLOATS, AT_GRAD_DT = 7 * TILE_FLOATS };
enum { AT_DECAYS = SPAN_FLOATS, AT_LANES_B = 2 * SPAN_FLOATS, AT_LANES_C = 3 * SPAN_FLOATS };
#define LOG2_E 1.44269504f
#define LN_2 0.693147181f
#define PADDED(channels) (((channels) + 15) / 16 * 16)

/* What one thread works in; buffers hold a tile, (SPAN, STRIDE), or the block's channels, (block / LANES, d_state, LANES). */
typedef struct {
    float *memory;
    float *dt, *u, *y, *z, *slope, *grad_y, *grad_u, *grad_dt;
    float *B, *C;
    float *A, *state, *grad, *grad_A;
    float *D, *dt_bias, *grad_D, *grad_dt_bias;
    float *states, *decays, *lanes_B, *lanes_C, *out_B, *out_C;
} Workspace;

static int workspace_open(Workspace *w, const Scan *s) {
    int64_t width = PADDED(s->block), tile = TILE_FLOATS, row = SPAN * ((s->d_state + 15) / 16 * 16);
    int64_t state = width * s->d_state, span = SPAN_FLOATS;
    int64_t total = 8 * tile + 4 * row + 4 * state + 4 * width + 4 * span;
    float *next = aligned_alloc(64, (size_t)(total * 4 + 63) / 64 * 64);
    if (!next) return 0;
    w->memory = next;
#define TAKE(field, count) w->field = next, next += (count)
    TAKE(dt, tile), TAKE(u, tile), TAKE(y, tile), TAKE(z, tile);
    TAKE(slope, tile), TAKE(grad_y, tile), TAKE(grad_u, tile), TAKE(grad_dt, tile);
    TAKE(B, row), TAKE(C, row), TAKE(out_B, row), TAKE(out_C, row);
    TAKE(A, state), TAKE(state, state), TAKE(grad, state), TAKE(grad_A, state);
    TAKE(D, width), TAKE(dt_bias, width), TAKE(grad_D, width), TAKE(grad_dt_bias, width);
    TAKE(states, span), TAKE(decays, span), TAKE(lanes_B, span), TAKE(lanes_C, span);
#undef TAKE
    return 1;
}

/* values[channel][d_state] to (width / LANES, d_state, LANES) and back. */
static void gather_states(const float *values, int64_t d_state, int channels, float factor, float *to) {
    for (int c = 0; c < PADDED(channels); c++)
        for (int64_t n = 0; n < d_state; n++)
            to[(c / LANES * d_state + n) * LANES + c % LANES] = c < channels && values ? factor * values[c * d_state + n] : 0.0f;
}
static void scatter_states(const float *from, int64_t d_state, int channels, float *values) {
    for (int c = 0; c < channels; c++)
        for (int64_t n = 0; n < d_state; n++) values[c * d_state + n] = from[(c / LANES * d_state + n) * LANES + c % LANES];
}
static void load_channels(const float *values, int64_t channel, int channels, float *to) {
    for (int c = 0; c < PADDED(channels); c++) to[c] = c < channels && values ? values[channel + c] : 0.0f;
}

/* A tile's inputs: dt after bias and softplus, u = dt x, and y = D x to begin with. `slope` receives the derivative of dt by its input where
   wanted. */
static __attribute__((noinline)) void load_inputs(const Scan *s, const Row *row, Workspace *w, int64_t first, int frames, int64_t channel,
                                                  int tile, int width, float *slope) {
    const Stream x_at = stream(&s->x, row, first, s->reverse, channel + tile), dt_at = stream(&s->dt, row, first, s->reverse, channel + tile);
    const float *bias = w->dt_bias + tile, *D = w->D + tile;
    const int padded = PADDED(width);
    float x_row[TILE_BACKWARD], dt_row[TILE_BACKWARD];
    for (int t = 0; t < frames; t++) {
        const float *x = frame(&x_at, x_at.at + t * x_at.frame, width, padded, x_row);
        const float *dt = frame(&dt_at, dt_at.at + t * dt_at.frame, width, padded, dt_row);
        for (int c = 0, at = t * STRIDE; c < width; c += LANES, at += LANES) {
            Vector step = load(dt + c) + load(bias + c), input = load(x + c);
            if (s->dt_softplus) {
                Vector e = exp_negative(-absolute(step));
                if (slope) store(slope + at, sigmoid_from(step, e));
                step = softplus_from(step, e);
            }
            store(w->dt + at, step);
            store(w->u + at, step * input);
            store(w->y + at, load(D + c) * input);
        }
    }
    if (s->z.data) load_tile(&s->z, row, first, frames, s->reverse, channel + tile, width, STRIDE, w->z);
}

/* Advance `count` states of LANES channels over a span; y gains what they give. `tiles` are those of the workspace from dt on. */
INLINE void advance(int count, int frames, int64_t d_state, float *tiles, const float *B, const float *C, const float *A, float *state) {
    Vector h[STATES];
    for (int n = 0; n < count; n++) h[n] = load(state + n * LANES);
    for (int t = 0; t < frames; t++, tiles += STRIDE, B += d_state, C += d_state) {
        float *y = tiles + AT_Y;
        Vector step = load(tiles), input = load(tiles + AT_U), output = load(y);
#pragma GCC unroll 16
        for (int n = 0; n < count; n++) {
            h[n] = exp2_of_product(step, load(A + n * LANES)) * h[n] + input * B[n];
            output += h[n] * C[n];
        }
        store(y, output);
    }
    for (int n = 0; n < count; n++) store(state + n * LANES, h[n]);
}

static void forward_task(const Scan *s, const Row *row, int64_t index, int64_t channel, Workspace *w) {
    const int channels = (int)(s->d_inner - channel < s->block ? s->d_inner - channel : s->block), d_state = (int)s->d_state;
    const int64_t state_at = (index * s->d_inner + channel) * d_state;
    gather_states(s->A + channel * d_state, d_state, channels, LOG2_E, w->A);
    for (int64_t i = 0; i < PADDED(channels) * d_state; i += LANES) store(w->A + i, vector_max(broadcast(LOWEST_EXPONENT), load(w->A + i)));
    gather_states(s->initial_state ? s->initial_state + state_at : NULL, d_state, channels, 1.0f, w->state);
    load_channels(s->D, channel, channels, w->D);
    load_channels(s->dt_bias, channel, channels, w->dt_bias);

    for (int64_t first = 0; first < row->length; first += SPAN) {
        const int frames = (int)(row->length - first < SPAN ? row->length - first : SPAN);
        load_tile(&s->B, row, first, frames, s->reverse, 0, d_state, d_state, w->B);
        load_tile(&s->C, row, first, frames, s->reverse, 0, d_state, d_state, w->C);
        const int64_t state_step = PADDED(s->d_inner) * d_state;
        float *states = s->checkpoints ? s->checkpoints + (row->checkpoint + first / SPAN) * state_step + channel * d_state : NULL;
        for (int tile = 0; tile < channels; tile += TILE_FORWARD) {
            const int width = channels - tile < TILE_FORWARD ? channels - tile : TILE_FORWARD;
            Ahead reads = {0}, writes = {0};
            look_ahead(&reads, &s->x, row, first + SPAN, s->reverse, channel + tile);
            look_ahead(&reads, &s->dt, row, first + SPAN, s->reverse, channel + tile);
            if (s->z.data) look_ahead(&reads, &s->z, row, first + SPAN, s->reverse, channel + tile);
            look_ahead(&writes, &s->y, row, first, s->reverse, channel + tile);
            load_inputs(s, row, w, first, frames, channel, tile, width, NULL);
            if (states) {
                const int64_t from = tile * (int64_t)d_state;
                memcpy(states + from, w->state + from, (size_t)(PADDED(width) * d_state) * sizeof(float));
            }
            for (int c = 0; c < width; c += LANES) {
                const int64_t at = (tile + c) / LANES * (int64_t)d_state * LANES;
                int n = 0;
                ask(&reads, c, READ);
                ask(&writes, c, WRITE);
                if (states && first + SPAN < row->length)
                    for (int i = 0; i < d_state * LANES; i += 16) __builtin_prefetch(states + state_step + at + i, WRITE, 2);
#define ADVANCE(count)                                                                                                       \
    for (; STATES >= count && n + count <= d_state; n += count)                                                              \
    advance(count, frames, d_state, w->dt + c, w->B + n, w->C + n, w->A + at + n * LANES, w->state + at + n * LANES)
                ADVANCE(16);
                ADVANCE(8);
                ADVANCE(4);
                ADVANCE(1);
#undef ADVANCE
                if (s->z.data)
                    for (int at = c; at < frames * STRIDE; at += STRIDE) {
                        Vector z = load(w->z + at);
                        store(w->y + at, load(w->y + at) * z * sigmoid(z));
                    }
            }
            store_tile(&s->y, row, first, frames, s->reverse, channel + tile, width, STRIDE, w->y);
        }
    }
    scatter_states(w->state, d_state, channels, s->final_state + state_at);
    clear_padding(&s->y, row, channel, channels);
}

/* One span backwards for `count` states of LANES channels, which add their part to the lane sums of B's and C's gradients. `tiles` are
   those of the workspace from dt on, `saved` its buffers of a span from states on. */
INLINE void retreat(int count, int frames, int64_t d_state, int gated, int add, float *tiles, const float *B, const float *C,
                    const float *A, const float *state, float *grad, float *grad_A, float *saved) {
    Vector h[STATES_BACKWARD], a[STATES_BACKWARD];
    const int64_t frame_states = count * LANES;
    for (int n = 0; n < count; n++) {
        h[n] = load(state + n * LANES);
        store(saved + n * LANES, h[n]);
    }
    for (int t = 0; t < frames; t++, tiles += STRIDE, saved += frame_states, B += d_state, C += d_state) {
        Vector step = load(tiles), input = load(tiles + AT_U);
#pragma GCC unroll 16
        for (int n = 0; n < count; n++) {
            Vector decay = exp2_of_product(step, load(A + n * LANES));
            h[n] = decay * h[n] + input * B[n];
            store(saved + AT_DECAYS + n * LANES, decay);
            store(saved + frame_states + n * LANES, h[n]);
        }
        if (gated) {
            Vector output = load(tiles + AT_Y);
#pragma GCC unroll 16
            for (int n = 0; n < count; n++) output += h[n] * C[n];
            store(tiles + AT_Y, output);
        }
    }
    for (int n = 0; n < count; n++) {
        h[n] = load(grad + n * LANES);
        a[n] = broadcast(0.0f);
    }
    for (int t = 0; t < frames; t++) {
        tiles -= STRIDE, saved -= frame_states, B -= d_state, C -= d_state;
        Vector step = load(tiles), input = load(tiles + AT_U), above = load(tiles + AT_GRAD_Y);
        Vector by_u = load(tiles + AT_GRAD_U), by_dt = load(tiles + AT_GRAD_DT);
#pragma GCC unroll 16
        for (int n = 0; n < count; n++) {
            float *at_B = saved + AT_LANES_B + n * LANES, *at_C = saved + AT_LANES_C + n * LANES;
            Vector sum_C = above * load(saved + frame_states + n * LANES);
            h[n] += above * C[n];
            Vector sum_B = input * h[n];
            store(at_C, add ? load(at_C) + sum_C : sum_C);
            store(at_B, add ? load(at_B) + sum_B : sum_B);
            by_u += h[n] * B[n];
            h[n] *= load(saved + AT_DECAYS + n * LANES);
            Vector exponent = h[n] * load(saved + n * LANES);
            by_dt += exponent * load(A + n * LANES);
            a[n] += exponent * step;
        }
        store(tiles + AT_GRAD_U, by_u);
        store(tiles + AT_GRAD_DT, by_dt);
    }
    for (int n = 0; n < count; n++) {
        store(grad + n * LANES, h[n]);
        store(grad_A + n * LANES, load(grad_A + n * LANES) + a[n]);
    }
}

/* out[i] gains the sum of the lanes of vector i, for `count` vectors. */
INLINE void reduce_lanes(int count, const float *lanes, float *out) {
    Vector vectors[LANES];
    float sums[LANES];
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int k = 0; k < LANES; k++) vectors[k] = load(lanes + (i + k) * LANES);
        sum_lanes(vectors, sums);
        store(out + i, load(out + i) + load(sums));
    }
    if (i == count) return;
    for (int k = 0; k < LANES; k++) vectors[k] = i + k < count ? load(lanes + (i + k) * LANES) : broadcast(0.0f);
    sum_lanes(vectors, sums);
    for (int k = 0; i + k < count; k++) out[i + k] += sums[k];
}

/* sums[t][i] for i < count, to row t of a tile from column n on. */
static void place_sums(int count, int frames, int n, int d_state, const float *sums, float *tile) {
    for (int t = 0; t < frames; t++)
        for (int i = 0; i < count; i++) tile[t * d_state + n + i] = sums[t * count + i];
}

/* The gradient of the output, before the gate where there is one; z keeps what, times that output, is z's gradient. */
static __attribute__((noinline)) void load_gradient(const Scan *s, const Row *row, Workspace *w, int64_t first, int frames, int64_t channel,
                                                    int tile, int width) {
    const Stream grad_at = stream(&s->grad_y, row, first, s->reverse, channel + tile);
    float grad_row[TILE_BACKWARD];
    for (int t = 0; t < frames; t++) {
        const float *grad_y = frame(&grad_at, grad_at.at + t * grad_at.frame, width, PADDED(width), grad_row);
        for (int c = 0, at = t * STRIDE; c < width; c += LANES, at += LANES) {
            Vector above = load(grad_y + c);
            if (s->z.data) {
                Vector z = load(w->z + at), gate = sigmoid(z);
                store(w->z + at, above * gate * (1.0f + z * (1.0f - gate)));
                above *= gate * z;
            }
            store(w->grad_y + at, above);
            store(w->grad_u + at, broadcast(0.0f));
            store(w->grad_dt + at, broadcast(0.0f));
        }
    }
}

/* From the gradients by dt and u = dt x to those of the tensors that were given. Sums over time go span by span, which rounds less. */
static __attribute__((noinline)) void store_gradients(const Scan *s, const Row *row, Workspace *w, int64_t first, int frames, int64_t channel,
                                                      int tile, int width) {
    const Stream x_at = stream(&s->x, row, first, s->reverse, channel + tile);
    const Stream grad_x_at = stream(&s->grad_x, row, first, s->reverse, channel + tile);
    const Stream grad_dt_at = stream(&s->grad_dt, row, first, s->reverse, channel + tile);
    const int padded = PADDED(width);
    float x_row[TILE_BACKWARD], grad_x_row[TILE_BACKWARD], grad_dt_row[TILE_BACKWARD];
    float by_D[TILE_BACKWARD], by_bias[TILE_BACKWARD];
    memset(by_D, 0, (size_t)padded * sizeof(float));
    memset(by_bias, 0, (size_t)padded * sizeof(float));
    for (int t = 0; t < frames; t++) {
        char *to_x = grad_x_at.at + t * grad_x_at.frame, *to_dt = grad_dt_at.at + t * grad_dt_at.frame;
        const float *x_frame = frame(&x_at, x_at.at + t * x_at.frame, width, padded, x_row);
        float *grad_x = frame_place(&grad_x_at, to_x, width, grad_x_row), *grad_dt = frame_place(&grad_dt_at, to_dt, width, grad_dt_row);
        for (int c = 0, at = t * STRIDE; c < width; c += LANES, at += LANES) {
            Vector x = load(x_frame + c), above = load(w->grad_y + at), by_u = load(w->grad_u + at);
            Vector by_dt = load(w->grad_dt + at) * LN_2 + by_u * x;
            if (s->dt_softplus) by_dt *= load(w->slope + at);
            if (s->z.data) store(w->z + at, load(w->z + at) * load(w->y + at));
            store(grad_dt + c, by_dt);
            store(grad_x + c, by_u * load(w->dt + at) + load(w->D + tile + c) * above);
            store(by_D + c, load(by_D + c) + above * x);
            store(by_bias + c, load(by_bias + c) + by_dt);
        }
        frame_done(&grad_x_at, to_x, width, grad_x);
        frame_done(&grad_dt_at, to_dt, width, grad_dt);
    }
    for (int c = 0; c < width; c += LANES) {
        store(w->grad_D + tile + c, load(w->grad_D + tile + c) + load(by_D + c));
        store(w->grad_dt_bias + tile + c, load(w->grad_dt_bias + tile + c) + load(by_bias + c));
    }
    if (s->z.data) store_tile(&s->grad_z, row, first, frames, s->reverse, channel + tile, width, STRIDE, w->z);
}

static void backward_task(const Scan *s, const Row *row, int64_t index, int64_t channel, Workspace *w) {
    const int channels = (int)(s->d_inner - channel < s->block ? s->d_inner - channel : s->block), d_state = (int)s->d_state;
    const int64_t state_at = (index * s->d_inner + channel) * d_state;
    const size_t block_bytes = (size_t)PADDED(channels) * sizeof(float);
    Array grad_B = s->grad_B, grad_C = s->grad_C;
    grad_B.data += channel / s->block * s->block_stride * sizeof(float);
    grad_C.data += channel / s->block * s->block_stride * sizeof(float);
    gather_states(s->A + channel * d_state, d_state, channels, LOG2_E, w->A);
    for (int64_t i = 0; i < PADDED(channels) * d_state; i += LANES) store(w->A + i, vector_max(broadcast(LOWEST_EXPONENT), load(w->A + i)));
    gather_states(s->grad_final_state ? s->grad_final_state + state_at : NULL, d_state, channels, 1.0f, w->grad);
    load_channels(s->D, channel, channels, w->D);
    load_channels(s->dt_bias, channel, channels, w->dt_bias);
    memset(w->grad_A, 0, block_bytes * d_state);
    memset(w->grad_D, 0, block_bytes);
    memset(w->grad_dt_bias, 0, block_bytes);

    for (int64_t first = (row->length - 1) / SPAN * SPAN; row->length && first >= 0; first -= SPAN) {
        const int frames = (int)(row->length - first < SPAN ? row->length - first : SPAN);
        const int64_t state_step = PADDED(s->d_inner) * d_state;
        const float *states = s->checkpoints + (row->checkpoint + first / SPAN) * state_step + channel * d_state;
        load_tile(&s->B, row, first, frames, s->reverse, 0, d_state, d_state, w->B);
        load_tile(&s->C, row, first, frames, s->reverse, 0, d_state, d_state, w->C);
        memset(w->out_B, 0, (size_t)frames * d_state * sizeof(float));
        memset(w->out_C, 0, (size_t)frames * d_state * sizeof(float));
        for (int tile = 0; tile < channels; tile += TILE_BACKWARD) {
            const int width = channels - tile < TILE_BACKWARD ? channels - tile : TILE_BACKWARD;
            Ahead reads = {0}, writes = {0};
            look_ahead(&reads, &s->x, row, first - SPAN, s->reverse, channel + tile);
            look_ahead(&reads, &s->dt, row, first - SPAN, s->reverse, channel + tile);
            look_ahead(&reads, &s->grad_y, row, first - SPAN, s->reverse, channel + tile);
            look_ahead(&writes, &s->grad_x, row, first, s->reverse, channel + tile);
            look_ahead(&writes, &s->grad_dt, row, first, s->reverse, channel + tile);
            if (s->z.data) look_ahead(&reads, &s->z, row, first - SPAN, s->reverse, channel + tile);
            if (s->z.data) look_ahead(&writes, &s->grad_z, row, first, s->reverse, channel + tile);
            load_inputs(s, row, w, first, frames, channel, tile, width, w->slope);
            load_gradient(s, row, w, first, frames, channel, tile, width);
            int n = 0;
#define RETREAT_VECTOR(count, add)                                                                                           \
    const int64_t at = ((tile + c) / LANES * (int64_t)d_state + n) * LANES;                                                  \
    retreat(count, frames, d_state, s->z.data != NULL, add, w->dt + c, w->B + n, w->C + n, w->A + at, states + at, w->grad + at, \
            w->grad_A + at, w->states)
#define RETREAT(count)                                                            \
    for (; STATES_BACKWARD >= count && n + count <= d_state; n += count) {        \
        for (int c = 0; c < width; c += LANES) {                                  \
            if (!n) {                                                             \
                ask(&reads, c, READ);                                             \
                ask(&writes, c, WRITE);                                           \
                const float *next = states - state_step + (tile + c) * d_state;   \
                for (int i = 0; first && i < d_state * LANES; i += 16) __builtin_prefetch(next + i, READ, 2); \
            }                                                                     \
            if (c) {                                                              \
                RETREAT_VECTOR(count, 1);                                         \
            } else {                                                              \
                RETREAT_VECTOR(count, 0);                                         \
            }                                                                     \
        }                                                                         \
        reduce_lanes(frames * count, w->lanes_B, w->out_B + n * frames);          \
        reduce_lanes(frames * count, w->lanes_C, w->out_C + n * frames);          \
    }
            RETREAT(8)
            RETREAT(4)
            RETREAT(1)
#undef RETREAT
#undef RETREAT_VECTOR
            store_gradients(s, row, w, first, frames, channel, tile, width);
        }
        /* The sums of a group of states lie together; B and C are no longer needed. */
        int n = 0;
#define PLACE(count)                                                           \
    for (; STATES_BACKWARD >= count && n + count <= d_state; n += count) {     \
        place_sums(count, frames, n, d_state, w->out_B + n * frames, w->B);    \
        place_sums(count, frames, n, d_state, w->out_C + n * frames, w->C);    \
    }
        PLACE(8)
        PLACE(4)
        PLACE(1)
#undef PLACE
        store_tile(&grad_B, row, first, frames, s->reverse, 0, d_state, d_state, w->B);
        store_tile(&grad_C, row, first, frames, s->reverse, 0, d_state, d_state, w->C);
    }
    scatter_states(w->grad, d_state, channels, s->grad_initial_state + state_at);
    scatter_states(w->grad_A, d_state, channels, s->grad_A + state_at);
    memcpy(s->grad_D + index * s->d_inner + channel, w->grad_D, (size_t)channels * sizeof(float));
    memcpy(s->grad_dt_bias + index * s->d_inner + channel, w->grad_dt_bias, (size_t)channels * sizeof(float));
    clear_padding(&s->grad_x, row, channel, channels);
    clear_padding(&s->grad_dt, row, channel, channels);
    if (s->z.data) clear_padding(&s->grad_z, row, channel, channels);
    clear_padding(&grad_B, row, 0, d_state);
    clear_padding(&grad_C, row, 0, d_state);
}

static int run(const Scan *s, int backward) {
    const int64_t blocks = (s->d_inner + s->block - 1) / s->block, tasks = s->rows * blocks;
    int failed = 0;
#pragma omp parallel num_threads((int)s->threads) if (s->threads > 1) reduction(| : failed)
    {
        Workspace workspace = {0};
        int open = workspace_open(&workspace, s);
        failed |= !open;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t index = task / blocks, channel = task % blocks * s->block;
            if (!open) continue;
            if (backward)
                backward_task(s, s->row + index, index, channel, &workspace);
            else
                forward_task(s, s->row + index, index, channel, &workspace);
        }
        if (open) free(workspace.memory);
    }
    return failed;
}

int NAME(scan_forward, ISA)(const Scan *s) { return run(s, 0); }
int NAME(scan_backward, ISA)(const Scan *s) { return run(s, 1); }
