/* Buffers of the best scores of a row: values, ids, their count, and a bound that rises when a full
 * buffer is shrunk. At any time every item seen is stored, or has a score of at most the bound. */
#ifndef CANDID_SHRINK_H
#define CANDID_SHRINK_H
#include "order.h"

#include <math.h>
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

static inline int64_t count_from(const float *values, int64_t n, float least) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t j = 0; j < n; j++) count += values[j] >= least;
    return count;
}

/* Return a value that `wanted` to `wanted + slack` of the n >= wanted values reach, by bisection. If
 * equal values rule that out, return the `wanted`-th best value. */
static float cut(const float *values, int64_t n, int64_t wanted, int64_t slack) {
    float lowest = INFINITY, highest = -INFINITY;
#pragma omp simd reduction(min : lowest) reduction(max : highest)
    for (int64_t j = 0; j < n; j++) {
        lowest = values[j] < lowest ? values[j] : lowest;
        highest = values[j] > highest ? values[j] : highest;
    }
    int64_t low = ordered(lowest), high = (int64_t)ordered(highest) + 1;
    for (int turn = 0; high - low > 1; turn++) {
        /* Bisecting values is fast if they are close together; bisecting bits always terminates. */
        int64_t middle = low + (high - low) / 2;
        if (turn % 2 == 0) {
            float mean = 0.5f * unordered((int32_t)low) + 0.5f * unordered((int32_t)(high - 1));
            int64_t between = mean > -INFINITY ? ordered(mean) : middle;
            middle = between > low && between < high ? between : middle;
        }
        int64_t count = count_from(values, n, unordered((int32_t)middle));
        if (count < wanted) {
            high = middle;
        } else {
            low = middle;
            if (count <= wanted + slack) break;
        }
    }
    return unordered((int32_t)low);
}

/* Store only the `wanted` best, or up to `slack` more, and raise the bound to the best dropped score. */
static void shrink(float *values, int32_t *ids, int32_t *count, float *bound, int64_t wanted,
                   int64_t slack) {
    int64_t n = *count;
    if (n <= wanted + slack) return;
    float least = cut(values, n, wanted, slack), dropped = *bound;
    int64_t above = count_from(values, n, least), ties = INT64_MAX;
    if (above > wanted + slack) {
        int64_t better = 0;
        for (int64_t j = 0; j < n; j++) better += values[j] > least;
        ties = wanted - better;
    }
    int64_t stored = 0, j = 0;
#if defined(__AVX512F__)
    if (ties == INT64_MAX) {
        __m512 limit = _mm512_set1_ps(least), best = _mm512_set1_ps(dropped);
        for (; j + 16 <= n; j += 16) {
            __m512 some = _mm512_loadu_ps(values + j);
            __m512i names = _mm512_loadu_si512(ids + j);
            __mmask16 stay = _mm512_cmp_ps_mask(some, limit, _CMP_GE_OQ);
            /* These stores end before the next numbers to read. */
            _mm512_storeu_ps(values + stored, _mm512_maskz_compress_ps(stay, some));
            _mm512_storeu_si512(ids + stored, _mm512_maskz_compress_epi32(stay, names));
            best = _mm512_mask_max_ps(best, (__mmask16)~stay, best, some);
            stored += __builtin_popcount(stay);
        }
        dropped = _mm512_reduce_max_ps(best);
    }
#endif
    for (; j < n; j++) {
        float value = values[j];
        int32_t id = ids[j];
        int stays = value > least || (value == least && ties-- > 0);
        values[stored] = value;
        ids[stored] = id;
        stored += stays;
        dropped = !stays && value > dropped ? value : dropped;
    }
    *count = (int32_t)stored;
    *bound = dropped;
}

#endif
