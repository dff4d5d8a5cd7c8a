/* The softmax of a tile of scores, row by row and in place, with the log of its sum.
 *
 * For each row: x[j] = score[j] - shift[j] + the changes of its lists - log(count[j]), where
 * count[j] = fixed[j] + others * part[j], or 1 where that is 0; score[j] becomes
 * exp(x[j] - reference), and log_sum = reference + log of the sum of these. The reference is the
 * largest x without the last logarithm and the finite changes. A row of -inf only becomes zeros,
 * with reference and log_sum -inf. NaN stays NaN. With keep = 0 the scores are undefined.
 *
 * Plain C that compilers vectorise; at most MAX_COLUMNS columns.
 */
#include "exponential.h"

#include <math.h>
#include <stdint.h>

#define MAX_COLUMNS 8192
/* Sums of this many terms are float32, sums of these sums float64. */
#define CHUNK 512

static inline float read_bfloat16(uint16_t score) { return as_float((uint32_t)score << 16); }

/* Round to nearest, halves away from zero; the value is finite and not negative, or NaN. */
static inline uint16_t write_bfloat16(float share) {
    return (uint16_t)((as_bits(share) + 0x8000u) >> 16);
}

static inline float read_float32(float score) { return score; }
static inline float write_float32(float share) { return share; }

/* Candidates of each row, and what is added to their scores. The entries of row i are first[i] to
 * stop[i] - 1; their candidates are ascending.
 */
typedef struct {
    const int64_t *first, *stop;
    const int64_t *candidates; /* of each entry; NULL: entry e is candidate e */
    const float *change;       /* of each entry; NULL: -inf */
} row_list;

static inline int64_t candidate_of(const row_list *list, int64_t entry) {
    return list->candidates ? list->candidates[entry] : entry;
}

/* The first entry of a row whose candidate is at least this one. */
static int64_t first_entry(const row_list *list, int64_t row, int64_t candidate) {
    int64_t low = list->first[row], high = list->stop[row];
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (candidate_of(list, middle) < candidate) low = middle + 1;
        else high = middle;
    }
    return low;
}

#define DEFINE_PASS(NAME, SCORE, NONE)                                                            \
    static void NAME##_row(SCORE *restrict scores, const float *restrict shift, int64_t columns,  \
                           const row_list *lists, int32_t num_lists, int64_t row, int64_t first,  \
                           const float *restrict fixed, const float *restrict part, float others, \
                           int keep, float *restrict reference, float *restrict log_sum) {        \
        float x[MAX_COLUMNS];                                                                     \
        float highest = -INFINITY;                                                                \
        for (int32_t l = 0; l < num_lists; l++) {                                                 \
            const row_list *list = lists + l;                                                     \
            for (int64_t e = first_entry(list, row, first); e < list->stop[row]; e++) {           \
                int64_t j = candidate_of(list, e) - first;                                        \
                if (j >= columns) break;                                                          \
                if (!list->change || list->change[e] == -INFINITY) scores[j] = NONE;              \
            }                                                                                     \
        }                                                                                         \
        if (shift) {                                                                              \
            _Pragma("omp simd reduction(max : highest)")                                          \
            for (int64_t j = 0; j < columns; j++) {                                               \
                float value = read_##NAME(scores[j]) - shift[j];                                  \
                x[j] = value;                                                                     \
                highest = value > highest ? value : highest;                                      \
            }                                                                                     \
        } else {                                                                                  \
            _Pragma("omp simd reduction(max : highest)")                                          \
            for (int64_t j = 0; j < columns; j++) {                                               \
                float value = read_##NAME(scores[j]);                                             \
                x[j] = value;                                                                     \
                highest = value > highest ? value : highest;                                      \
            }                                                                                     \
        }                                                                                         \
        for (int32_t l = 0; l < num_lists; l++) {                                                 \
            const row_list *list = lists + l;                                                     \
            if (!list->change) continue;                                                          \
            for (int64_t e = first_entry(list, row, first); e < list->stop[row]; e++) {           \
                int64_t j = candidate_of(list, e) - first;                                        \
                if (j >= columns) break;                                                          \
                x[j] += list->change[e];                                                          \
            }                                                                                     \
        }                                                                                         \
        float base = highest == -INFINITY ? 0.0f : highest;                                       \
        double total = 0.0;                                                                       \
        for (int64_t start = 0; start < columns; start += CHUNK) {                                \
            int64_t stop = start + CHUNK < columns ? start + CHUNK : columns;                     \
            float sum = 0.0f;                                                                     \
            if (fixed) {                                                                          \
                _Pragma("omp simd reduction(+ : sum)")                                            \
                for (int64_t j = start; j < stop; j++) {                                          \
                    float count = fixed[j] + others * part[j];                                    \
                    float share = exponential(x[j] - base) / (count == 0.0f ? 1.0f : count);      \
                    sum += share;                                                                 \
                    scores[j] = write_##NAME(share);                                              \
                }                                                                                 \
            } else if (keep) {                                                                    \
                _Pragma("omp simd reduction(+ : sum)")                                            \
                for (int64_t j = start; j < stop; j++) {                                          \
                    float share = exponential(x[j] - base);                                       \
                    sum += share;                                                                 \
                    scores[j] = write_##NAME(share);                                              \
                }                                                                                 \
            } else {                                                                              \
                _Pragma("omp simd reduction(+ : sum)")                                            \
                for (int64_t j = start; j < stop; j++) sum += exponential(x[j] - base);           \
            }                                                                                     \
            total += sum;                                                                         \
        }                                                                                         \
        *reference = total == 0.0 ? -INFINITY : base;                                             \
        *log_sum = (float)(base + log(total));                                                    \
    }                                                                                             \
                                                                                                  \
    /* The first row and candidate are those of the tile; lists and others are of all rows. */    \
    void candid_##NAME(SCORE *scores, const float *shift, int64_t rows, int64_t columns,          \
                       const row_list *lists, int32_t num_lists, int64_t first_row,               \
                       int64_t first_candidate, const float *fixed, const float *part,            \
                       const float *others, int32_t keep, float *reference, float *log_sum,       \
                       int32_t threads) {                                                         \
        (void)threads; /* for compilers without OpenMP */                                         \
        _Pragma("omp parallel for num_threads(threads) if (threads > 1)")                         \
        for (int64_t i = 0; i < rows; i++)                                                        \
            NAME##_row(scores + i * columns, shift, columns, lists, num_lists, first_row + i,     \
                       first_candidate, fixed, part, fixed ? others[first_row + i] : 0.0f, keep,  \
                       reference + i, log_sum + i);                                               \
    }

DEFINE_PASS(bfloat16, uint16_t, 0xFF80u)
DEFINE_PASS(float32, float, -INFINITY)
