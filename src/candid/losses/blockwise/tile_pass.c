/* The softmax of a tile of scores, row by row and in place, with the log of its sum.
 *
 * For each row: x[j] = score[j] - shift[j]; reference = the largest x; score[j] becomes
 * exp(x[j] - reference), and log_sum = reference + log of the sum of these. A row of -inf only
 * becomes zeros, with reference and log_sum -inf. NaN stays NaN. With keep = 0 the scores are
 * not changed.
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

/* Round to nearest, halves away from zero; the value is 0 to 1, or NaN. */
static inline uint16_t write_bfloat16(float share) {
    return (uint16_t)((as_bits(share) + 0x8000u) >> 16);
}

static inline float read_float32(float score) { return score; }
static inline float write_float32(float share) { return share; }

#define DEFINE_PASS(NAME, SCORE)                                                                  \
    static void NAME##_row(SCORE *restrict scores, const float *restrict shift, int64_t columns,  \
                           int keep, float *restrict reference, float *restrict log_sum) {        \
        float x[MAX_COLUMNS];                                                                     \
        float highest = -INFINITY;                                                                \
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
        float base = highest == -INFINITY ? 0.0f : highest;                                       \
        double total = 0.0;                                                                       \
        for (int64_t start = 0; start < columns; start += CHUNK) {                                \
            int64_t stop = start + CHUNK < columns ? start + CHUNK : columns;                     \
            float sum = 0.0f;                                                                     \
            if (keep) {                                                                           \
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
    void candid_##NAME(SCORE *scores, const float *shift, int64_t rows, int64_t columns,          \
                       int32_t keep, float *reference, float *log_sum, int32_t threads) {         \
        (void)threads; /* for compilers without OpenMP */                                         \
        _Pragma("omp parallel for num_threads(threads) if (threads > 1)")                         \
        for (int64_t i = 0; i < rows; i++)                                                        \
            NAME##_row(scores + i * columns, shift, columns, keep, reference + i, log_sum + i);   \
    }

DEFINE_PASS(bfloat16, uint16_t)
DEFINE_PASS(float32, float)
