/* Log of the sum of exp of the scores of each row, tile by tile.
 *
 * A row has a reference, the largest score so far, and the sum of exp(score - reference). A tile with
 * a larger score rescales the sum. A row of -inf only has reference -inf and sum 0; NaN stays NaN.
 */
#include "exponential.h"

#include <math.h>
#include <stdint.h>

/* Sums of this many terms are float32, sums of these sums float64. */
#define CHUNK 512

static void add_row(const float *scores, int64_t columns, float *reference, double *sum) {
    float highest = *reference;
#pragma omp simd reduction(max : highest)
    for (int64_t j = 0; j < columns; j++) highest = scores[j] > highest ? scores[j] : highest;
    float base = highest == -INFINITY ? 0.0f : highest;
    double total = *reference == -INFINITY ? *sum : *sum * exp((double)*reference - base);
    for (int64_t start = 0; start < columns; start += CHUNK) {
        int64_t stop = start + CHUNK < columns ? start + CHUNK : columns;
        float part = 0.0f;
#pragma omp simd reduction(+ : part)
        for (int64_t j = start; j < stop; j++) part += exponential(scores[j] - base);
        total += part;
    }
    *reference = highest;
    *sum = total;
}

void candid_log_sum_exp(const float *scores, int64_t rows, int64_t columns, float *references,
                        double *sums, int32_t threads) {
    (void)threads; /* for compilers without OpenMP */
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++)
        add_row(scores + i * columns, columns, references + i, sums + i);
}
