/* What the Python side hands over; ctypes mirrors of these structures stand in native.py. */
#ifndef MAMBAVOX_ARRAYS_H
#define MAMBAVOX_ARRAYS_H

#include <stdint.h>

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

/* Frames between two stored states, and frames worked off at a time. */
#define SPAN 16

/* (batch, time, channel) with strides in elements. `data` is NULL where the tensor is not given. */
typedef struct {
    char *data;
    int64_t batch_stride, time_stride, channel_stride, dtype;
} Array;

/* One sequence: frames start .. start + length of a batch entry; frames from there to start + capacity are cleared. */
typedef struct {
    int64_t batch, start, length, capacity, checkpoint;
} Row;

typedef struct {
    int64_t rows, d_inner, d_state, block, dt_softplus, reverse, threads;
    const Row *row;
    const float *A, *D, *dt_bias, *initial_state; /* (d_inner, d_state), (d_inner), (d_inner), (rows, d_inner, d_state) */
    float *final_state, *checkpoints;             /* (rows, d_inner, d_state), (spans, d_inner padded to 16, d_state) */
    Array x, dt, B, C, z, y;
    const float *grad_final_state;
    Array grad_y, grad_x, grad_dt, grad_z;
    float *grad_A, *grad_D, *grad_dt_bias, *grad_initial_state; /* a slice for each row */
    Array grad_B, grad_C; /* float32; the slices of channel block k begin at k * block_stride elements */
    int64_t block_stride;
} Scan;

typedef struct {
    int64_t rows, d_inner, width, block, silu, reverse, threads;
    const Row *row;
    const float *weight, *bias, *initial_state; /* (width, d_inner), (d_inner), (rows, width - 1, d_inner) */
    float *final_state;                         /* (rows, width - 1, d_inner) */
    Array x, y;
    const float *grad_final_state;
    Array grad_y, grad_x;
    float *grad_weight, *grad_bias, *grad_initial_state; /* a slice for each row */
} Conv;

#endif
