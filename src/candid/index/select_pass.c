/* Selection of the best items of each row, tile by tile, and their order by the definition of exact
 * search.
 *
 * candid_select reads a tile of scores: it skips excluded items and stores the items whose score is
 * above the bound of the row. A row stores at least its `wanted` best so far. When its buffer is full,
 * the others are dropped and the bound rises to the best score that was dropped. At any time every
 * item seen is stored, excluded, or has a score of at most the bound.
 *
 * candid_scan is both for few queries: it multiplies the vectors and selects, tile by tile, while each
 * thread reads its own share of the items.
 *
 * candid_rank scores the stored items again, in float64 rounded to float32, and writes the k best keys
 * (see order.py). It reports for each row whether the bound proves that no other item belongs there.
 *
 * Plain C that compilers turn into vector instructions. Scores are never NaN; -inf is never stored.
 */
#include "shrink.h"

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

/* Columns compared at a time. */
#define BLOCK 32
/* Groups of columns whose maxima give the first bound of a row. */
#define MIN_GROUPS 128
#define MAX_GROUPS 4096
#define GROUPS_PER_RESULT 4
/* Runs of this length are sorted by counting; longer lists are merged from them. */
#define RUN 128
/* Columns of a tile of candid_scan, which select_pass.py repeats, and items multiplied at a time. */
#define TILE 4096
#define STRIP 64
/* Vectors are prefetched this many products ahead: they are scattered over the table. */
#define AHEAD 8

#define NO_ITEM_KEY ((int64_t)((uint64_t)0x807fffffu << 32) + ((int64_t)1 << 31))

/* The first bound of a row: at least `wanted` scores of this tile exceed it. */
static float first_bound(const float *scores, int64_t columns, int64_t wanted) {
    float maxima[MAX_GROUPS];
    int64_t groups = GROUPS_PER_RESULT * wanted;
    if (groups > MAX_GROUPS) groups = MAX_GROUPS;
    if (groups < MIN_GROUPS) groups = MIN_GROUPS;
    if (groups < wanted + wanted / 2 || columns < 2 * groups) return -INFINITY;
    memcpy(maxima, scores, groups * sizeof *maxima);
    for (int64_t start = groups; start + groups <= columns; start += groups) {
        const float *members = scores + start;
#pragma omp simd
        for (int64_t j = 0; j < groups; j++)
            maxima[j] = members[j] > maxima[j] ? members[j] : maxima[j];
    }
    float least = cut(maxima, groups, wanted, wanted / 8);
    if (least == -INFINITY) return least;
    /* The next lower value, but not -0.0, which equals 0.0. */
    return unordered(least == 0.0f ? -2 : ordered(least) - 1);
}

/* Return a bit mask of the scores of a block that exceed the bound; the lowest bit is the first. */
static inline uint32_t above(const float *scores, float bound) {
#if defined(__AVX512F__)
    __m512 least = _mm512_set1_ps(bound);
    uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores), least, _CMP_GT_OQ);
    uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + 16), least, _CMP_GT_OQ);
    return low | high << 16;
#elif defined(__AVX2__)
    __m256 least = _mm256_set1_ps(bound);
    uint32_t mask = 0;
    for (int j = 0; j < BLOCK; j += 8) {
        __m256 greater = _mm256_cmp_ps(_mm256_loadu_ps(scores + j), least, _CMP_GT_OQ);
        mask |= (uint32_t)_mm256_movemask_ps(greater) << j;
    }
    return mask;
#else
    int32_t any = 0;
    uint32_t mask = 0;
#pragma omp simd reduction(| : any)
    for (int j = 0; j < BLOCK; j++) any |= scores[j] > bound;
    if (any)
        for (int j = 0; j < BLOCK; j++) mask |= (uint32_t)(scores[j] > bound) << j;
    return mask;
#endif
}

static void select_row(float *scores, int64_t columns, int64_t first_id, int is_first,
                       const int64_t *excluded, int64_t num_excluded, int64_t wanted, int64_t capacity, float *values,
                       int32_t *ids, int32_t *count, float *bound) {
    for (int64_t j = 0; j < num_excluded; j++) {
        uint64_t column = (uint64_t)excluded[j] - (uint64_t)first_id;
        if (column < (uint64_t)columns) scores[column] = -INFINITY;
    }
    if (is_first) {
        *count = 0;
        *bound = first_bound(scores, columns, wanted);
    }
    float worst = *bound;
    int64_t n = *count;
    for (int64_t start = 0; start < columns; start += BLOCK) {
        uint32_t mask = 0;
        if (start + BLOCK <= columns)
            mask = above(scores + start, worst);
        else
            for (int64_t j = start; j < columns; j++)
                mask |= (uint32_t)(scores[j] > worst) << (j - start);
        if (!mask) continue;
        if (n + BLOCK > capacity) {
            *count = (int32_t)n;
            shrink(values, ids, count, bound, wanted, wanted / 4);
            worst = *bound;
            n = *count;
        }
        for (; mask; mask &= mask - 1) {
            int64_t column = start + __builtin_ctz(mask);
            values[n] = scores[column];
            ids[n++] = (int32_t)(first_id + column);
        }
    }
    *count = (int32_t)n;
}

void candid_select(float *scores, int64_t rows, int64_t columns, int64_t first_id,
                   const int64_t *excluded, const int64_t *offsets, int64_t wanted,
                   int64_t capacity, float *values, int32_t *ids, int32_t *counts, float *bounds,
                   int32_t threads) {
    (void)threads; /* for compilers without OpenMP */
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        int64_t from = offsets ? offsets[i] : 0, to = offsets ? offsets[i + 1] : 0;
        select_row(scores + i * columns, columns, first_id, first_id == 0, excluded + from,
                   to - from, wanted, capacity, values + i * capacity, ids + i * capacity, counts + i, bounds + i);
    }
}

/* Products of one query with n items in float32. */
static void multiply_row(const float *restrict query, const float *vectors, int64_t n, int64_t width,
                         float *restrict scores) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
        const float *first = vectors + j * width, *second = first + width;
        const float *third = second + width, *fourth = third + width;
        float a = 0.0f, b = 0.0f, c = 0.0f, e = 0.0f;
#pragma omp simd reduction(+ : a, b, c, e)
        for (int64_t d = 0; d < width; d++) {
            a += query[d] * first[d];
            b += query[d] * second[d];
            c += query[d] * third[d];
            e += query[d] * fourth[d];
        }
        scores[j] = a, scores[j + 1] = b, scores[j + 2] = c, scores[j + 3] = e;
    }
    for (; j < n; j++) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < width; d++) sum += query[d] * vectors[j * width + d];
        scores[j] = sum;
    }
}

/* Select from the items first .. stop - 1 for all rows; `tile` has room for rows * TILE scores. */
static void scan_part(const float *query, const float *vectors, int64_t rows, int64_t width,
                      int64_t first, int64_t stop, const int64_t *excluded, const int64_t *offsets,
                      int64_t wanted, int64_t capacity, int64_t parts, float *values, int32_t *ids,
                      int32_t *counts, float *bounds, float *tile) {
    for (int64_t start = first; start < stop; start += TILE) {
        int64_t columns = stop - start < TILE ? stop - start : TILE;
        /* Few items at a time, so that all rows read them from the first-level cache. */
        for (int64_t j = 0; j < columns; j += STRIP) {
            int64_t n = columns - j < STRIP ? columns - j : STRIP;
            for (int64_t i = 0; i < rows; i++)
                multiply_row(query + i * width, vectors + (start + j) * width, n, width,
                             tile + i * columns + j);
        }
        for (int64_t i = 0; i < rows; i++) {
            int64_t from = offsets ? offsets[i] : 0, to = offsets ? offsets[i + 1] : 0;
            select_row(tile + i * columns, columns, start, start == first, excluded + from, to - from,
                       wanted, capacity, values + i * parts * capacity, ids + i * parts * capacity,
                       counts + i * parts, bounds + i * parts);
        }
    }
}

/* The buffers hold `parts` lists of each row; afterwards the lists of a row are one list, its count
 * and bound are at position i. `tile` has room for parts * rows * TILE scores. */
void candid_scan(const float *query, const float *vectors, int64_t rows, int64_t width,
                 int64_t num_items, const int64_t *excluded, const int64_t *offsets, float *tile,
                 int64_t parts, int64_t wanted, int64_t capacity, float *values, int32_t *ids,
                 int32_t *counts, float *bounds, int32_t threads) {
    (void)threads;
    int64_t share = (num_items + parts - 1) / parts;
    for (int64_t i = 0; i < rows * parts; i++) counts[i] = 0, bounds[i] = -INFINITY;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = part * share, stop = first + share < num_items ? first + share : num_items;
        scan_part(query, vectors, rows, width, first, stop, excluded, offsets, wanted, capacity, parts,
                  values + part * capacity, ids + part * capacity, counts + part, bounds + part,
                  tile + part * rows * TILE);
    }
    for (int64_t i = 0; i < rows; i++) {
        int64_t n = 0, row = i * parts * capacity;
        float bound = -INFINITY;
        for (int64_t part = 0; part < parts; part++) {
            int64_t count = counts[i * parts + part], from = row + part * capacity;
            memmove(values + row + n, values + from, count * sizeof *values);
            memmove(ids + row + n, ids + from, count * sizeof *ids);
            n += count;
            bound = bounds[i * parts + part] > bound ? bounds[i * parts + part] : bound;
        }
        counts[i] = (int32_t)n;
        bounds[i] = bound;
    }
}

static void order_run(const int64_t *keys, int64_t n, int64_t *sorted) {
    int64_t positions[RUN] = {0}; /* number of larger keys */
    for (int64_t j = 0; j < n; j++) {
        int64_t key = keys[j];
#pragma omp simd
        for (int64_t i = 0; i < n; i++) positions[i] += key > keys[i];
    }
    for (int64_t i = 0; i < n; i++) sorted[positions[i]] = keys[i];
}

/* Sort distinct keys, largest first. The result is in `keys` or in `room`; it is returned. */
static int64_t *order(int64_t *keys, int64_t *room, int64_t n) {
    for (int64_t start = 0; start < n; start += RUN)
        order_run(keys + start, n - start < RUN ? n - start : RUN, room + start);
    int64_t *from = room, *to = keys;
    for (int64_t width = RUN; width < n; width *= 2) {
        for (int64_t start = 0; start < n; start += 2 * width) {
            int64_t i = start, middle = start + width < n ? start + width : n;
            int64_t j = middle, end = middle + width < n ? middle + width : n;
            for (int64_t position = start; position < end; position++) {
                int first = j >= end || (i < middle && from[i] > from[j]);
                to[position] = first ? from[i++] : from[j++];
            }
        }
        int64_t *swapped = from;
        from = to;
        to = swapped;
    }
    return from;
}

/* Products of a query with four items in float64: four independent sums hide the latency. */
static inline void products(const float *restrict query, const float *vectors, const int32_t *ids,
                            int64_t width, double *restrict scores) {
    const float *first = vectors + ids[0] * width, *second = vectors + ids[1] * width;
    const float *third = vectors + ids[2] * width, *fourth = vectors + ids[3] * width;
    double a = 0.0, b = 0.0, c = 0.0, e = 0.0;
#pragma omp simd reduction(+ : a, b, c, e)
    for (int64_t d = 0; d < width; d++) {
        double weight = query[d];
        a += weight * (double)first[d];
        b += weight * (double)second[d];
        c += weight * (double)third[d];
        e += weight * (double)fourth[d];
    }
    scores[0] = a, scores[1] = b, scores[2] = c, scores[3] = e;
}

static int rank_row(const float *query, const float *vectors, int64_t width, double error,
                    int64_t k, int64_t wanted, float *values, int32_t *ids, int32_t *count,
                    float *bound, int64_t *keys) {
    shrink(values, ids, count, bound, wanted, wanted / 4);
    int64_t n = *count, num_results = n < k ? n : k;
    int64_t *work = malloc((2 * n + 6) * sizeof *work);
    if (!work) return 0;
    /* The buffers have room for up to three more products after the last one. */
    for (int64_t j = n; j % 4; j++) ids[j] = 0;
    for (int64_t j = 0; j < n; j += 4) {
        double scores[4];
        for (int64_t i = j + AHEAD; i < j + AHEAD + 4 && i < n; i++) {
            const float *item = vectors + ids[i] * width;
            for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(item + d);
        }
        products(query, vectors, ids + j, width, scores);
        for (int64_t i = j; i < j + 4; i++) {
            int64_t high = ordered((float)scores[i - j]);
            work[i] = (int64_t)((uint64_t)high << 32) + (INT32_MAX - ids[i]);
        }
    }
    memcpy(keys, order(work, work + n + 3, n), num_results * sizeof *keys);
    free(work);
    for (int64_t j = num_results; j < k; j++) keys[j] = NO_ITEM_KEY;
    if (*bound == -INFINITY) return 1;
    return num_results == k && (double)unordered((int32_t)(keys[k - 1] >> 32)) > *bound + error;
}

void candid_rank(const float *query, const float *vectors, int64_t rows, int64_t width,
                 const double *errors, int64_t k, int64_t wanted, int64_t capacity, float *values,
                 int32_t *ids, int32_t *counts, float *bounds, int64_t *keys, uint8_t *proven,
                 int32_t threads) {
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++)
        proven[i] = (uint8_t)rank_row(query + i * width, vectors, width, errors[i], k, wanted,
                                      values + i * capacity, ids + i * capacity, counts + i,
                                      bounds + i, keys + i * k);
}
