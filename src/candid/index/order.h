/* The order of results as in order.py: score descending, then id ascending, in one integer key. */
#ifndef CANDID_ORDER_H
#define CANDID_ORDER_H
#include <stdint.h>
#include <string.h>

/* An integer with the order of the floats; adding zero turns -0.0 into 0.0. */
static inline int32_t ordered(float value) {
    int32_t bits;
    value += 0.0f;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

static inline float unordered(int32_t key) {
    float value;
    int32_t bits = key ^ ((key >> 31) & INT32_MAX);
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
