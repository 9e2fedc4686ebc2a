/* The causal depthwise convolution, forward and backward, with SiLU fused, for one instruction set (ISA names it).

   A task is one row and one block of channels; the lanes of a vector are channels. Frames are loaded in spans behind the `width - 1`
   frames before them, which at the row's beginning are the carried state. */

#include <stdlib.h>

#include "tiles.h"

#define NAME_(name, isa) name##_##isa
#define NAME(name, isa) NAME_(name, isa)

typedef struct {
    float *memory;
    float *x, *y, *grad_x, *weight, *bias, *grad_weight, *grad_bias;
} Workspace;

static int workspace_open(Workspace *w, const Conv *s) {
    int64_t block = (s->block + 15) / 16 * 16, frames = (s->width - 1 + SPAN) * block, taps = s->width * block;
    float *next = aligned_alloc(64, (size_t)((2 * frames + SPAN * block + 2 * taps + 2 * block) * 4 + 63) / 64 * 64);
    if (!next) return 0;
    w->memory = next;
#define TAKE(field, count) w->field = next, next += (count)
    TAKE(x, frames), TAKE(grad_x, frames), TAKE(y, SPAN * block), TAKE(weight, taps), TAKE(grad_weight, taps);
    TAKE(bias, block), TAKE(grad_bias, block);
#undef TAKE
    return 1;
}

static void load_channels(const float *values, int64_t channel, int channels, int width, float *to) {
    for (int c = 0; c < width; c++) to[c] = c < channels && values ? values[channel + c] : 0.0f;
}

static int span_length(const Row *row, int64_t first) { return (int)(row->length - first < SPAN ? row->length - first : SPAN); }

/* Convolution of FRAMES frames of LANES channels, the taps read once for all of them. */
#define FRAMES 4
INLINE void convolve(int count, int taps, int lanes, const float *x, const float *weight, Vector bias, float *y) {
    Vector sum[FRAMES];
    for (int t = 0; t < count; t++) sum[t] = bias;
    for (int k = 0; k < taps; k++) {
        Vector tap = load(weight + k * lanes);
#pragma GCC unroll 4
        for (int t = 0; t < count; t++) sum[t] += tap * load(x + (t + k) * lanes);
    }
    for (int t = 0; t < count; t++) store(y + t * lanes, sum[t]);
}

static void convolve_span(const Workspace *w, int frames, int taps, int lanes, int channel) {
    int t = 0;
    for (; t + FRAMES <= frames; t += FRAMES)
        convolve(FRAMES, taps, lanes, w->x + t * lanes + channel, w->weight + channel, load(w->bias + channel), w->y + t * lanes + channel);
    for (; t < frames; t++)
        convolve(1, taps, lanes, w->x + t * lanes + channel, w->weight + channel, load(w->bias + channel), w->y + t * lanes + channel);
}

static void forward_task(const Conv *s, const Row *row, int64_t index, int64_t channel, Workspace *w) {
    const int channels = (int)(s->d_inner - channel < s->block ? s->d_inner - channel : s->block);
    const int lanes = (channels + LANES - 1) / LANES * LANES, taps = (int)s->width, past = taps - 1;
    for (int k = 0; k < taps; k++) load_channels(s->weight + k * s->d_inner, channel, channels, lanes, w->weight + k * lanes);
    load_channels(s->bias, channel, channels, lanes, w->bias);
    for (int k = 0; k < past; k++)
        load_channels(s->initial_state ? s->initial_state + (index * past + k) * s->d_inner : NULL, channel, channels, lanes,
                      w->x + k * lanes);
    for (int64_t first = 0; first < row->length; first += SPAN) {
        const int frames = span_length(row, first);
        Ahead reads = {0}, writes = {0};
        look_ahead(&reads, &s->x, row, first + SPAN, s->reverse, channel);
        look_ahead(&writes, &s->y, row, first, s->reverse, channel);
        load_tile(&s->x, row, first, frames, s->reverse, channel, channels, lanes, w->x + past * lanes);
        for (int c = 0; c < lanes; c += LANES) {
            ask(&reads, c, READ);
            ask(&writes, c, WRITE);
            convolve_span(w, frames, taps, lanes, c);
        }
        if (s->silu)
            for (int i = 0; i < frames * lanes; i += LANES) {
                Vector y = load(w->y + i);
                store(w->y + i, y * sigmoid(y));
            }
        store_tile(&s->y, row, first, frames, s->reverse, channel, channels, lanes, w->y);
        memmove(w->x, w->x + frames * lanes, (size_t)past * lanes * sizeof(float));
    }
    for (int k = 0; k < past; k++)
        memcpy(s->final_state + (index * past + k) * s->d_inner + channel, w->x + k * lanes, (size_t)channels * sizeof(float));
    clear_padding(&s->y, row, channel, channels);
}

/* Frames first - past .. first of a row, from the row itself or the state before it. */
static void load_past(const Conv *s, const Row *row, int64_t index, int64_t first, int past, int64_t channel, int channels, int lanes,
                      float *to) {
    for (int k = 0; k < past; k++) {
        const int64_t frame = first - past + k;
        if (frame >= 0)
            load_tile(&s->x, row, frame, 1, s->reverse, channel, channels, lanes, to + k * lanes);
        else
            load_channels(s->initial_state ? s->initial_state + (index * past + past + frame) * s->d_inner : NULL, channel, channels,
                          lanes, to + k * lanes);
    }
}

static void backward_task(const Conv *s, const Row *row, int64_t index, int64_t channel, Workspace *w) {
    const int channels = (int)(s->d_inner - channel < s->block ? s->d_inner - channel : s->block);
    const int lanes = (channels + LANES - 1) / LANES * LANES, taps = (int)s->width, past = taps - 1;
    for (int k = 0; k < taps; k++) load_channels(s->weight + k * s->d_inner, channel, channels, lanes, w->weight + k * lanes);
    load_channels(s->bias, channel, channels, lanes, w->bias);
    memset(w->grad_weight, 0, (size_t)taps * lanes * sizeof(float));
    memset(w->grad_bias, 0, (size_t)lanes * sizeof(float));
    /* grad_x holds the gradients of the span's frames and, before them, of the `past` frames that they also read. */
    float *carried = w->grad_x;
    for (int k = 0; k < past; k++)
        load_channels(s->grad_final_state ? s->grad_final_state + (index * past + k) * s->d_inner : NULL, channel, channels, lanes,
                      carried + k * lanes);
    for (int64_t first = (row->length - 1) / SPAN * SPAN; row->length && first >= 0; first -= SPAN) {
        const int frames = span_length(row, first);
        Ahead reads = {0}, writes = {0};
        look_ahead(&reads, &s->x, row, first - SPAN, s->reverse, channel);
        look_ahead(&reads, &s->grad_y, row, first - SPAN, s->reverse, channel);
        look_ahead(&writes, &s->grad_x, row, first, s->reverse, channel);
        load_past(s, row, index, first, past, channel, channels, lanes, w->x);
        load_tile(&s->x, row, first, frames, s->reverse, channel, channels, lanes, w->x + past * lanes);
        memmove(w->grad_x + frames * lanes, w->grad_x, (size_t)past * lanes * sizeof(float));
        memset(w->grad_x, 0, (size_t)frames * lanes * sizeof(float));
        for (int c = 0; c < lanes; c += LANES)
            if (s->silu) convolve_span(w, frames, taps, lanes, c);
        float above[SPAN * LANES];
        for (int c = 0; c < channels; c += LANES) {
            const int count = channels - c < LANES ? channels - c : LANES;
            ask(&reads, c, READ);
            ask(&writes, c, WRITE);
            load_tile(&s->grad_y, row, first, frames, s->reverse, channel + c, count, LANES, above);
            Vector by_bias = load(w->grad_bias + c);
            for (int t = 0; t < frames; t++) {
                Vector by_y = load(above + t * LANES);
                if (s->silu) {
                    Vector y = load(w->y + t * lanes + c), gate = sigmoid(y);
                    by_y *= gate * (1.0f + y * (1.0f - gate));
                    store(above + t * LANES, by_y);
                }
                by_bias += by_y;
            }
            store(w->grad_bias + c, by_bias);
            for (int k = 0; k < taps; k++) {
                Vector tap = load(w->weight + k * lanes + c), by_tap = load(w->grad_weight + k * lanes + c);
                for (int t = 0; t < frames; t++) {
                    Vector by_y = load(above + t * LANES);
                    float *at = w->grad_x + (t + k) * lanes + c;
                    by_tap += by_y * load(w->x + (t + k) * lanes + c);
                    store(at, load(at) + by_y * tap);
                }
                store(w->grad_weight + k * lanes + c, by_tap);
            }
        }
        store_tile(&s->grad_x, row, first, frames, s->reverse, channel, channels, lanes, w->grad_x + past * lanes);
    }
    for (int k = 0; k < past; k++)
        memcpy(s->grad_initial_state + (index * past + k) * s->d_inner + channel, carried + k * lanes, (size_t)channels * sizeof(float));
    for (int k = 0; k < taps; k++)
        memcpy(s->grad_weight + (index * taps + k) * s->d_inner + channel, w->grad_weight + k * lanes, (size_t)channels * sizeof(float));
    memcpy(s->grad_bias + index * s->d_inner + channel, w->grad_bias, (size_t)channels * sizeof(float));
    clear_padding(&s->grad_x, row, channel, channels);
}

static int run(const Conv *s, int backward) {
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

int NAME(conv_forward, ISA)(const Conv *s) { return run(s, 0); }
int NAME(conv_backward, ISA)(const Conv *s) { return run(s, 1); }
