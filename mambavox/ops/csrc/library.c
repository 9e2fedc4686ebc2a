/* What the shared library exports: which instruction sets this machine has, and the kernels compiled for one of them. */

#include <sys/mman.h>
#include <unistd.h>

#include "arrays.h"

typedef struct {
    const char *name;
    int (*scan_forward)(const Scan *), (*scan_backward)(const Scan *);
    int (*conv_forward)(const Conv *), (*conv_backward)(const Conv *);
    double (*multiply_add_rate)(int64_t, int64_t);
} Kernels;

#define DECLARE(isa)                                                          \
    int scan_forward_##isa(const Scan *), scan_backward_##isa(const Scan *); \
    int conv_forward_##isa(const Conv *), conv_backward_##isa(const Conv *); \
    double multiply_add_rate_##isa(int64_t, int64_t)
#define KERNELS(isa) \
    {#isa, scan_forward_##isa, scan_backward_##isa, conv_forward_##isa, conv_backward_##isa, multiply_add_rate_##isa}

DECLARE(baseline);
#if defined(__x86_64__)
DECLARE(avx2);
DECLARE(avx512);
static const Kernels kernels[] = {KERNELS(baseline), KERNELS(avx2), KERNELS(avx512)};
#else
static const Kernels kernels[] = {KERNELS(baseline)};
#endif

/* Number of instruction sets that this machine runs; they are numbered from the slowest. */
int mambavox_instruction_sets(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl"))
        return 2;
    return 3;
#else
    return 1;
#endif
}

const char *mambavox_instruction_set_name(int set) { return kernels[set].name; }

/* All return 0, or 1 where memory ran out. */
int mambavox_scan_forward(const Scan *scan, int set) { return kernels[set].scan_forward(scan); }
int mambavox_scan_backward(const Scan *scan, int set) { return kernels[set].scan_backward(scan); }
int mambavox_conv_forward(const Conv *conv, int set) { return kernels[set].conv_forward(conv); }
int mambavox_conv_backward(const Conv *conv, int set) { return kernels[set].conv_backward(conv); }

double mambavox_multiply_add_rate(int64_t iterations, int64_t threads, int set) {
    return kernels[set].multiply_add_rate(iterations, threads);
}

#define HUGE_PAGE ((uintptr_t)2 << 20)

/* Before a large tensor is first written: ask for huge pages, since a fault on every 4 KiB costs as much as the scan itself, and touch
   every page here, from one thread. In the scan all threads reach the same page at the same time; each would clear it, or wait. */
void mambavox_use_huge_pages(void *data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)data, end = start + (uintptr_t)bytes;
    uintptr_t at = (start + page - 1) / page * page;
    if (at >= end / page * page) return;
    madvise((void *)at, end / page * page - at, MADV_HUGEPAGE);
    while (at < end) {
        *(volatile char *)at = 0;
        at += at % HUGE_PAGE || end - at < HUGE_PAGE ? page : HUGE_PAGE;
    }
#else
    (void)data, (void)bytes;
#endif
}
