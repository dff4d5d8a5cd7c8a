/* Scan of inverted lists with codes of 8 bits: the candidates of an approximate search.
 *
 * The score of an item is the product of the query with the centre of its list plus the product of
 * the query with the rest of the item, both rounded to 8 bits: a sum of integers times two scales.
 * Each row reads the `probes` lists whose centres have the largest products and returns `wanted`
 * items of the largest scores, in no order; -1 fills the rest of the row.
 *
 * Items are stored in blocks of 16, the numbers of a block in groups of four: byte 4 * i + t of group
 * g is number 4 * g + t of item i, plus 128. That is the operand of the instruction VPDPBUSD, which
 * multiplies 64 pairs of bytes; processors without it run plain C.
 *
 * The rows of a thread read a list one after the other, eight at a time, while it is in the cache.
 */
#include "shrink.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#include <immintrin.h>
#define VNNI 1
#else
#define VNNI 0
#endif

#define ITEMS 16 /* of a block */
#define ROWS 8   /* multiplied at a time */
#define STRIP 256 /* blocks that stay in the second-level cache while all rows read them */
#define AHEAD 2048 /* bytes, for prefetching: the processor itself stops at the end of a page */

typedef struct {
    const uint8_t *codes;   /* [blocks][groups][ITEMS][4] */
    const float *scales;    /* [blocks][ITEMS] */
    const int32_t *ids;     /* [blocks][ITEMS], -1 after the last item of a list */
    const int64_t *starts;  /* [lists + 1], blocks */
    int64_t lists, groups;
} Index;

typedef struct {
    const int8_t *query;    /* [groups][4] */
    float scale;            /* of the query */
    const float *products;  /* [lists], with the centres */
    int32_t correction;     /* -128 times the sum of the query */
    int64_t wanted, capacity;
    float *values, bound;   /* [capacity] */
    int32_t *stored, count; /* [capacity] */
} Row;

static void make_room(Row *row) {
    if (row->count + ITEMS > row->capacity)
        shrink(row->values, row->stored, &row->count, &row->bound, row->wanted, row->wanted / 4);
}

/* Score the blocks first .. stop - 1 of a list for n rows. */
static inline __attribute__((always_inline)) void scan(const Index *index, int64_t list, int64_t first,
                                                       int64_t stop, Row **rows, int n) {
    for (int64_t block = first; block < stop; block++) {
        const uint8_t *codes = index->codes + block * index->groups * ITEMS * 4;
        const float *scales = index->scales + block * ITEMS;
        const int32_t *ids = index->ids + block * ITEMS;
#if VNNI
        __m512i sums[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) sums[r] = _mm512_set1_epi32(rows[r]->correction);
        for (int64_t g = 0; g < index->groups; g++) {
            __m512i code = _mm512_loadu_si512(codes + g * ITEMS * 4);
            __builtin_prefetch(codes + g * ITEMS * 4 + AHEAD);
#pragma GCC unroll 8
            for (int r = 0; r < n; r++) {
                int32_t four;
                memcpy(&four, rows[r]->query + 4 * g, 4);
                sums[r] = _mm512_dpbusd_epi32(sums[r], code, _mm512_set1_epi32(four));
            }
        }
        __m512 scale = _mm512_loadu_ps(scales);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) {
            __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r]), scale);
            score = _mm512_fmadd_ps(score, _mm512_set1_ps(rows[r]->scale),
                                    _mm512_set1_ps(rows[r]->products[list]));
            Row *row = rows[r];
            __mmask16 above = _mm512_cmp_ps_mask(score, _mm512_set1_ps(row->bound), _CMP_GT_OQ);
            if (above) {
                make_room(row);
                __m512i names = _mm512_loadu_si512(ids);
                above &= _mm512_cmpge_epi32_mask(names, _mm512_setzero_si512());
                _mm512_storeu_ps(row->values + row->count, _mm512_maskz_compress_ps(above, score));
                _mm512_storeu_si512(row->stored + row->count,
                                    _mm512_maskz_compress_epi32(above, names));
                row->count += __builtin_popcount(above);
            }
        }
#else
        for (int r = 0; r < n; r++) {
            int32_t sums[ITEMS];
            for (int i = 0; i < ITEMS; i++) sums[i] = rows[r]->correction;
            for (int64_t g = 0; g < index->groups; g++) {
                const uint8_t *code = codes + g * ITEMS * 4;
                const int8_t *four = rows[r]->query + 4 * g;
                for (int i = 0; i < ITEMS; i++)
                    sums[i] += code[4 * i] * four[0] + code[4 * i + 1] * four[1] +
                               code[4 * i + 2] * four[2] + code[4 * i + 3] * four[3];
            }
            Row *row = rows[r];
            float scores[ITEMS];
            int32_t above = 0;
            for (int i = 0; i < ITEMS; i++) {
                scores[i] = (float)sums[i] * scales[i] * row->scale + row->products[list];
                above |= scores[i] > row->bound;
            }
            if (!above) continue;
            make_room(row);
            for (int i = 0; i < ITEMS; i++) {
                row->values[row->count] = scores[i];
                row->stored[row->count] = ids[i];
                row->count += ids[i] >= 0 && scores[i] > row->bound;
            }
        }
#endif
    }
}

/* Write the `probes` lists of the largest products. */
static void nearest(const float *products, int64_t lists, int64_t probes, int32_t *out) {
    float least = probes < lists ? cut(products, lists, probes, 0) : -INFINITY;
    int64_t n = 0, ties = probes;
    for (int64_t l = 0; l < lists; l++) ties -= products[l] > least;
    for (int64_t l = 0; l < lists && n < probes; l++)
        if (products[l] > least || (products[l] == least && ties-- > 0)) out[n++] = (int32_t)l;
}

/* Search for n rows; `room` has space for lists + 1 + 2 * n * probes numbers. */
static void search(const Index *index, Row *rows, int64_t n, int64_t probes, int32_t *room) {
    int32_t *ends = room, *lists = ends + index->lists + 1, *members = lists + n * probes;
    memset(ends, 0, (index->lists + 1) * sizeof *ends);
    for (int64_t i = 0; i < n; i++) {
        nearest(rows[i].products, index->lists, probes, lists + i * probes);
        for (int64_t p = 0; p < probes; p++) ends[lists[i * probes + p] + 1]++;
    }
    for (int64_t l = 0; l < index->lists; l++) ends[l + 1] += ends[l];
    for (int64_t i = 0; i < n; i++)
        for (int64_t p = 0; p < probes; p++) members[ends[lists[i * probes + p]]++] = (int32_t)i;
    int64_t begin = 0;
    for (int64_t l = 0; l < index->lists; begin = ends[l++]) {
        int64_t end = ends[l], last = index->starts[l + 1];
        if (begin == end) continue;
        for (int64_t first = index->starts[l]; first < last; first += STRIP) {
            int64_t stop = first + STRIP < last ? first + STRIP : last;
            Row *few[ROWS];
            int64_t at = begin;
            for (; at + ROWS <= end; at += ROWS) {
                for (int r = 0; r < ROWS; r++) few[r] = rows + members[at + r];
                scan(index, l, first, stop, few, ROWS);
            }
            for (; at + 4 <= end; at += 4) {
                for (int r = 0; r < 4; r++) few[r] = rows + members[at + r];
                scan(index, l, first, stop, few, 4);
            }
            for (; at < end; at++) {
                few[0] = rows + members[at];
                scan(index, l, first, stop, few, 1);
            }
        }
    }
}

/* Returns 0 where there is not enough memory. */
int32_t candid_int8(const uint8_t *codes, const float *scales, const int32_t *ids,
                    const int64_t *starts, int64_t lists, int64_t groups, const int8_t *queries,
                    const float *query_scales, const float *products, int64_t num_rows,
                    int64_t probes, int64_t wanted, int64_t *candidates, int32_t threads) {
    Index index = {codes, scales, ids, starts, lists, groups};
    int64_t capacity = 2 * wanted + 64, parts = threads < num_rows ? threads : num_rows;
    int32_t failed = 0;
#pragma omp parallel for num_threads(threads) if (parts > 1) reduction(| : failed)
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = part * num_rows / parts, n = (part + 1) * num_rows / parts - first;
        Row *rows = malloc(n * sizeof *rows);
        float *values = malloc(n * capacity * sizeof *values);
        int32_t *stored = malloc(n * capacity * sizeof *stored);
        int32_t *room = malloc((lists + 1 + 2 * n * probes) * sizeof *room);
        if (rows && values && stored && room) {
            for (int64_t i = 0; i < n; i++) {
                const int8_t *query = queries + (first + i) * groups * 4;
                int32_t sum = 0;
                for (int64_t d = 0; d < groups * 4; d++) sum += query[d];
                rows[i] = (Row){query, query_scales[first + i], products + (first + i) * lists,
                                -128 * sum, wanted, capacity, values + i * capacity, -INFINITY,
                                stored + i * capacity, 0};
            }
            search(&index, rows, n, probes, room);
            for (int64_t i = 0; i < n; i++) {
                Row *row = rows + i;
                shrink(row->values, row->stored, &row->count, &row->bound, wanted, 0);
                int64_t *out = candidates + (first + i) * wanted;
                for (int64_t j = 0; j < wanted; j++) out[j] = j < row->count ? row->stored[j] : -1;
            }
        } else {
            failed = 1;
        }
        free(rows), free(values), free(stored), free(room);
    }
    return !failed;
}
