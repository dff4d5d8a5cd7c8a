/* Exact ranking in approximate search: the k best of each row's candidates.
 *
 * The score of a candidate is the float64 product of its vector with the query, rounded to float32.
 * The order is score descending, then id ascending (see order.py). Ids outside 0..num_items - 1, which
 * a damaged index may return, and items excluded from the row are skipped. If fewer than k remain, the
 * rest of the row is id -1, score -inf.
 */
#include "order.h"

#include <math.h>
#include <stdint.h>

/* Vectors are prefetched this many candidates ahead: they are scattered over the table. */
#define AHEAD 24
#define LINE 64

static inline int64_t key_of(float score, int64_t id) {
    return (int64_t)((uint64_t)(uint32_t)ordered(score) << 32) + (INT32_MAX - id);
}

static inline float product(const float *restrict a, const float *restrict b, int64_t dim) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dim; d++) sum += (double)a[d] * (double)b[d];
    return (float)sum;
}

static inline void fetch(const float *vector, int64_t dim) {
    const char *begin = (const char *)vector;
    for (int64_t byte = 0; byte < dim * (int64_t)sizeof(float); byte += LINE)
        __builtin_prefetch(begin + byte);
}

static int is_in(const int64_t *sorted, int64_t count, int64_t id) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (sorted[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && sorted[low] == id;
}

/* Restore the heap order, smallest key first, below position `at`. */
static void sink(int64_t *heap, int64_t count, int64_t at) {
    int64_t key = heap[at];
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= count) break;
        child += child + 1 < count && heap[child + 1] < heap[child];
        if (heap[child] >= key) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
}

static void rerank_row(const float *vectors, int64_t num_items, const float *query, int64_t dim,
                       const int64_t *candidates, int64_t num_candidates, const int64_t *excluded,
                       int64_t num_excluded, int64_t k, int64_t *ids, float *scores) {
    /* The heap of the best keys so far uses the memory of the result ids. */
    int64_t *heap = ids, count = 0;
    for (int64_t j = 0; j < AHEAD && j < num_candidates; j++)
        if (candidates[j] >= 0 && candidates[j] < num_items) fetch(vectors + candidates[j] * dim, dim);
    for (int64_t j = 0; j < num_candidates; j++) {
        if (j + AHEAD < num_candidates && candidates[j + AHEAD] >= 0 &&
            candidates[j + AHEAD] < num_items)
            fetch(vectors + candidates[j + AHEAD] * dim, dim);
        int64_t id = candidates[j];
        if (id < 0 || id >= num_items || (num_excluded && is_in(excluded, num_excluded, id))) continue;
        int64_t key = key_of(product(vectors + id * dim, query, dim), id);
        if (count < k) {
            heap[count++] = key;
            if (count == k)
                for (int64_t at = k / 2; at-- > 0;) sink(heap, k, at);
        } else if (key > heap[0]) {
            heap[0] = key;
            sink(heap, k, 0);
        }
    }
    if (count < k)
        for (int64_t at = count / 2; at-- > 0;) sink(heap, count, at);
    for (int64_t last = count - 1; last > 0; last--) {
        int64_t smallest = heap[0];
        heap[0] = heap[last];
        heap[last] = smallest;
        sink(heap, last, 0);
    }
    for (int64_t i = 0; i < k; i++) {
        int64_t key = i < count ? heap[i] : 0;
        ids[i] = i < count ? INT32_MAX - (key & 0xffffffff) : -1;
        scores[i] = i < count ? unordered((int32_t)(key >> 32)) : -INFINITY;
    }
}

void candid_rerank(const float *vectors, int64_t num_items, const float *queries, int64_t dim,
                   const int64_t *candidates, int64_t rows, int64_t num_candidates,
                   const int64_t *excluded, const int64_t *offsets, int64_t k, int64_t *ids,
                   float *scores, int32_t threads) {
    (void)threads; /* for compilers without OpenMP */
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        int64_t first = offsets ? offsets[row] : 0, last = offsets ? offsets[row + 1] : 0;
        rerank_row(vectors, num_items, queries + row * dim, dim, candidates + row * num_candidates,
                   num_candidates, excluded + first, last - first, k, ids + row * k,
                   scores + row * k);
    }
}
