/* One vector of LANES floats in the instruction set that this file is compiled for, and the functions the kernels need.

   exp2_of_product: within 1.3 units in the last place where the product of its arguments is a float, and exactly 1 where it is 0, so that a
   slow decay is kept over any number of frames. */
#ifndef MAMBAVOX_VECTOR_H
#define MAMBAVOX_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define LANES 16
#define STATES 16 /* states of a channel worked off together: what the registers hold, forward */
#define STATES_BACKWARD 8
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define STATES 8
#define STATES_BACKWARD 4
#else
#define LANES 4
#define STATES 4
#define STATES_BACKWARD 4
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE Vector broadcast(float value) { return value - (Vector){0}; }
INLINE Vector load(const float *from) {
    Vector value;
    memcpy(&value, from, sizeof value);
    return value;
}
INLINE void store(float *to, Vector value) { memcpy(to, &value, sizeof value); }

/* The second operand where either is NaN. */
INLINE Vector vector_max(Vector a, Vector b) {
#if LANES == 16
    return _mm512_max_ps(a, b);
#elif LANES == 8
    return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
    return _mm_max_ps(a, b);
#elif defined(__ARM_NEON)
    return vmaxq_f32(a, b);
#else
    Integers first = a > b;
    return (Vector)(((Integers)a & first) | ((Integers)b & ~first));
#endif
}
INLINE Vector vector_min(Vector a, Vector b) { return -vector_max(-a, -b); }
INLINE Vector absolute(Vector a) { return (Vector)((Integers)a & 0x7fffffff); }

#define ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */

/* 2^(f + n) for f in -0.5 .. 0.5, where n sits in the low bits of `rounded`; the polynomial's relative error is 1.6e-8. */
INLINE Vector exp2_parts(Vector f, Vector rounded) {
    Vector p = f * 0.000153533621f + 0.00133988746f;
    p = p * f + 0.00961843736f;
    p = p * f + 0.0555033247f;
    p = p * f + 0.240226479f;
    p = p * f + 0.693147203f;
    p = p * f + 1.0f;
    return (Vector)((Integers)p + ((Integers)rounded << 23));
}

/* 2^(a * b) for b of no less than LOWEST_EXPONENT. */
#define LOWEST_EXPONENT -1e12f
INLINE Vector exp2_of_product(Vector a, Vector b) {
#if LANES == 16
    /* 2^(n + f) with n a multiple of 1/16: its fraction picks a power from a table, three terms are left for f. */
    const Vector powers = {1.0f,         1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
                           1.41421354f,  1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
    Vector rounded = a * b + ROUND / 16, n = rounded - ROUND / 16, f = a * b - n;
    Vector power = _mm512_permutexvar_ps((__m512i)rounded, powers);
    Vector rest = ((f * 0.0555021353f + 0.240234286f) * f + 0.693147182f) * f;
    return _mm512_scalef_ps(power * rest + power, n);
#else
    Vector exponent = vector_max(broadcast(-126.0f), vector_min(broadcast(128.0f), a * b));
    Vector rounded = exponent + ROUND;
    return exp2_parts(exponent - (rounded - ROUND), rounded);
#endif
}

/* exp(x) for x <= 0, relative error below 3e-7: the product with log2(e) is taken in two parts. */
INLINE Vector exp_negative(Vector x) {
    x = vector_max(broadcast(-87.0f), x);
    Vector rounded = x * 1.44269502f + ROUND, n = rounded - ROUND;
    Vector f = x * 1.44269502f - n + x * 1.92596303e-8f;
    return exp2_parts(f, rounded);
}

/* 1 / x for x of 1 .. 2, within 1.5 units in the last place. */
INLINE Vector reciprocal(Vector x) {
#if LANES == 16
    Vector r = _mm512_rcp14_ps(x);
    return r + r * (1.0f - x * r);
#else
    return 1.0f / x;
#endif
}

/* The logistic function, given e = exp(-|x|). */
INLINE Vector sigmoid_from(Vector x, Vector e) {
    Vector positive = reciprocal(1.0f + e);
    Integers negative = x < 0.0f;
    return (Vector)(((Integers)(e * positive) & negative) | ((Integers)positive & ~negative));
}
INLINE Vector sigmoid(Vector x) { return sigmoid_from(x, exp_negative(-absolute(x))); }

/* log(1 + exp(x)), given e = exp(-|x|). log(1 + e) as a polynomial times e keeps small results relatively exact (4e-8). */
INLINE Vector softplus_from(Vector x, Vector e) {
    Vector p = e * -0.00331846853f + 0.020204568f;
    p = p * e + -0.0576644146f;
    p = p * e + 0.106805528f;
    p = p * e + -0.153553948f;
    p = p * e + 0.196954001f;
    p = p * e + -0.249585874f;
    p = p * e + 0.333305113f;
    p = p * e + -0.499999328f;
    p = p * e + 1.0f;
    return vector_max(broadcast(0.0f), x) + p * e;
}

/* sums[i] = sum of the lanes of vectors[i], for LANES vectors: a tree of shuffles. */
#define PAIR(a, b, low, high) (SHUFFLE(a, b, low) + SHUFFLE(a, b, high))
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#if LANES == 16
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define LOW2 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29
#define HIGH2 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31
#define LOW1 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define HIGH1 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15
#define LOW2 0, 1, 4, 5, 8, 9, 12, 13
#define HIGH2 2, 3, 6, 7, 10, 11, 14, 15
#define LOW1 0, 2, 4, 6, 8, 10, 12, 14
#define HIGH1 1, 3, 5, 7, 9, 11, 13, 15
#else
#define LOW2 0, 1, 4, 5
#define HIGH2 2, 3, 6, 7
#define LOW1 0, 2, 4, 6
#define HIGH1 1, 3, 5, 7
#endif

INLINE void sum_lanes(const Vector *vectors, float *sums) {
    Vector v[LANES];
    for (int i = 0; i < LANES; i++) v[i] = vectors[i];
    int count = LANES;
#if LANES == 16
    count /= 2;
    for (int i = 0; i < count; i++) v[i] = PAIR(v[2 * i], v[2 * i + 1], LOW8, HIGH8);
#endif
#if LANES >= 8
    count /= 2;
    for (int i = 0; i < count; i++) v[i] = PAIR(v[2 * i], v[2 * i + 1], LOW4, HIGH4);
#endif
    count /= 2;
    for (int i = 0; i < count; i++) v[i] = PAIR(v[2 * i], v[2 * i + 1], LOW2, HIGH2);
    count /= 2;
    for (int i = 0; i < count; i++) v[i] = PAIR(v[2 * i], v[2 * i + 1], LOW1, HIGH1);
    store(sums, v[0]);
}

#endif
