/* How many multiply-adds this machine does in a second, for one instruction set (ISA names it): by it a kernel's limit is computed. */

#include <time.h>

#include "vector.h"

#define NAME_(name, isa) name##_##isa
#define NAME(name, isa) NAME_(name, isa)

/* Independent chains: as many as hide the latency of a multiply-add and still fit the registers of every instruction set. */
#define CHAINS 12

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Multiply-adds a second of all threads, every lane counted: the sum of the threads' own rates over `iterations` rounds. */
double NAME(multiply_add_rate, ISA)(int64_t iterations, int64_t threads) {
    double rate = 0.0;
    (void)threads; /* without OpenMP one thread works */
#pragma omp parallel num_threads((int)threads) reduction(+ : rate)
    {
        Vector chain[CHAINS], factor = broadcast(0.5f), term = broadcast(1.0f), total = term;
        double start = seconds();
        __asm__ volatile("" : "+m"(term) : : "memory"); /* the rounds begin after the first look at the clock */
        /* Unrolled, all three: an array that is indexed by a variable lies in memory, not in registers. */
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) chain[i] = broadcast((float)i);
        for (int64_t round = 0; round < iterations; round++)
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * factor + term;
        /* Whole vectors: lanes that nobody reads would not be worked out. */
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) total += chain[i];
        __asm__ volatile("" : : "m"(total) : "memory"); /* and end before the second */
        rate += (double)(iterations * CHAINS * LANES) / (seconds() - start);
    }
    return rate;
}
