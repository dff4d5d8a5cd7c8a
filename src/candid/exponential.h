/* exp for sums of exponentials; compilers vectorise loops that call it. */
#ifndef CANDID_EXPONENTIAL_H
#define CANDID_EXPONENTIAL_H
#include <stdint.h>
#include <string.h>

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* exp of x <= 0 with a relative error of at most 2e-7 at 0 and 1.4e-6 at -87, where x log2 e is rounded
 * more, and 0 below -87, where float32 ends.
 *
 * 2^(x log2 e) = 2^n 2^f: adding 1.5 * 2^23 rounds to the integer n, which is then in the lowest
 * bits; 2^f, |f| <= 1/2, is the polynomial of degree 5 with the smallest relative error (9e-8).
 * The comparisons let NaN pass through.
 */
static inline float exponential(float x) {
    const float lowest = -87.0f, rounder = 12582912.0f, log2e = 1.44269504088896341f;
    float clamped = lowest > x ? lowest : x;
    float rounded = clamped * log2e + rounder;
    float f = clamped * log2e - (rounded - rounder);
    float power = 1.3264727065e-3f;
    power = power * f + 9.6715126489e-3f;
    power = power * f + 5.5507337437e-2f;
    power = power * f + 2.4022242085e-1f;
    power = power * f + 6.9314697760e-1f;
    power = power * f + 1.0f;
    float scaled = as_float(as_bits(power) + (as_bits(rounded) << 23));
    return x < lowest ? 0.0f : scaled;
}

#endif
