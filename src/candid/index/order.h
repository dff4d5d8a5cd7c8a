/* The order of results, as order.py has it: score descending, then id ascending, in one integer. */
#ifndef CANDID_ORDER_H
#define CANDID_ORDER_H
#include <stdint.h>
#include <string.h>

/* Integers that compare like the floats; adding zero makes -0.0 and 0.0 one. */
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
