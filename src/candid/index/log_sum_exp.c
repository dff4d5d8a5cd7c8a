/* Log of the sum of exp of the scores of each row, tile by tile.
 *
 * A row has a reference, the largest score so far, and the sum of exp(score - reference). A tile with
 * a larger score rescales the sum. A row of -inf only has reference -inf and sum 0; NaN stays NaN.
 *
 * A float32 term is 2^f · 2^(n - K) with score · log2 e = n + f and K the n of the largest score: K only
 * moves the exponent, so that the rounding of a term depends on its score alone. Sums are float64. The
 * result therefore does not depend on the order of the items, up to the rounding of float64.
 */
#include "exponential.h"

#include <math.h>
#include <stdint.h>

/* Adding it to a float rounds to an integer, which is then in the lowest bits. */
#define ROUNDER 12582912.0f
/* log2 e in two parts. */
#define LOG2E 1.44269502f
#define LOG2E_REST 1.92596299e-8f
#define LN2 0.69314718055994531
/* Smaller terms relative to the largest one are replaced by 2^-120. */
#define LOWEST -120.0f
/* Beyond it n is no longer exact. */
#define LARGEST_SCORE 2e6f

/* exp(score) / 2^K with a relative error of 2e-7; `lowest` is the score of 2^-120 then. The polynomial
 * is that of exponential.h. NaN passes through: its lowest bits are 0. */
static inline float scaled_exponential(float score, float lowest, float exponent) {
    float clamped = lowest > score ? lowest : score;
    float rounded = clamped * LOG2E + ROUNDER;
    float f = (clamped * LOG2E - (rounded - ROUNDER)) + clamped * LOG2E_REST;
    float power = 1.3264727065e-3f;
    power = power * f + 9.6715126489e-3f;
    power = power * f + 5.5507337437e-2f;
    power = power * f + 2.4022242085e-1f;
    power = power * f + 6.9314697760e-1f;
    power = power * f + 1.0f;
    return as_float(as_bits(power) + (as_bits(rounded - exponent) << 23));
}

static double sum_of_row(const float *scores, int64_t columns, float highest) {
    double total = 0.0;
    if (!(fabsf(highest) < LARGEST_SCORE)) {
        double base = highest == -INFINITY ? 0.0 : highest;
        for (int64_t j = 0; j < columns; j++) total += exp(scores[j] - base);
        return total;
    }
    float exponent = highest * LOG2E + ROUNDER - ROUNDER;
    float lowest = (exponent + LOWEST) * (float)LN2;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < columns; j++)
        total += scaled_exponential(scores[j], lowest, exponent);
    return total * exp(exponent * LN2 - highest);
}

static void add_row(const float *scores, int64_t columns, float *reference, double *sum) {
    float highest = *reference;
#pragma omp simd reduction(max : highest)
    for (int64_t j = 0; j < columns; j++) highest = scores[j] > highest ? scores[j] : highest;
    double before = *reference == -INFINITY ? *sum : *sum * exp((double)*reference - highest);
    *sum = before + sum_of_row(scores, columns, highest);
    *reference = highest;
}

void candid_log_sum_exp(const float *scores, int64_t rows, int64_t columns, float *references,
                        double *sums, int32_t threads) {
    (void)threads; /* for compilers without OpenMP */
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++)
        add_row(scores + i * columns, columns, references + i, sums + i);
}
