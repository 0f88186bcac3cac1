/*
 * Resizes pictures of random sizes, in memory that is not a byte longer than they are, on the plain and on the vector
 * path. Built with sanitizers, which end it at the first wrong read or overflow; it fails by itself where the two
 * paths differ. Arguments: a seed, and how many.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "resize.h"

static uint64_t state;

static uint32_t
random_bits(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static int
between(int least, int most) {
    return least + (int)(random_bits() % (uint32_t)(most - least + 1));
}

static int
length(void) {
    switch (between(0, 3)) {
        case 0:
            return between(1, 8);
        case 1:
            return between(1, 64);
        case 2:
            return between(1, 600);
        default:
            return between(1, 3000);
    }
}

static void
refused(int channels, int wide, int high, int side, int path) {
    uint8_t byte = 0;
    if (resize_picture(&byte, channels, wide, high, side, 0, (enum resize_path)path, &byte) != RESIZE_UNSURE) {
        fprintf(stderr, "not refused: %d channels, %d x %d to %d, path %d\n", channels, wide, high, side, path);
        exit(1);
    }
}

int
main(int count, char **arguments) {
    if (count != 3) {
        return 2;
    }
    state = strtoull(arguments[1], NULL, 10) * 2 + 1;
    const int rounds = atoi(arguments[2]);
    refused(4, 0, 1, 1, RESIZE_SCALAR);
    refused(4, 1, -1, 1, RESIZE_SCALAR);
    refused(4, 1, 1, 0, RESIZE_SCALAR);
    refused(3, 1, 1, 1, RESIZE_SCALAR);
    refused(4, RESIZE_LONGEST + 1, 1, 1, RESIZE_SCALAR);
    refused(4, 1, 0x7fffffff, 1, RESIZE_SCALAR);
    refused(4, 1, 1, RESIZE_LARGEST_SQUARE + 1, RESIZE_SCALAR);
    refused(4, RESIZE_LONGEST, 1, 1, RESIZE_SCALAR);
    refused(4, 1, 1, 1, 7);
    for (int round = 0; round < rounds; round++) {
        const int channels = between(0, 2) ? 4 : 1;
        int wide = length(), high = length();
        if (between(0, 40) == 0) {
            wide = 65535, high = between(1, 3);
        } else if (between(0, 40) == 0) {
            wide = between(1, 3), high = 65535;
        }
        if ((int64_t)wide * high > 1000000) {
            high = 1000000 / wide;
        }
        const int side = between(0, 3) ? between(1, 64) : between(0, 1) ? 224 : 336;
        const int vertical_first = between(0, 1);
        const size_t bytes = (size_t)wide * (size_t)high * (size_t)channels, square = (size_t)side * (size_t)side * 3;
        uint8_t *in = malloc(bytes), *plain = malloc(square), *vector = malloc(square);
        const int kind = between(0, 2);
        for (size_t i = 0; i < bytes; i++) {
            const uint32_t noise = random_bits();
            in[i] = kind == 0 ? (uint8_t)noise : kind == 1 ? (noise & 1 ? 255 : 0) : 255;
        }
        memset(plain, 1, square);
        memset(vector, 2, square);
        const enum resize_result one =
            resize_picture(in, channels, wide, high, side, vertical_first, RESIZE_SCALAR, plain);
        const enum resize_result two =
            resize_picture(in, channels, wide, high, side, vertical_first, resize_best_path(), vector);
        if (one != two || (one == RESIZE_DONE && memcmp(plain, vector, square) != 0)) {
            fprintf(stderr, "differs: %d channels, %d x %d to %d, order %d\n", channels, wide, high, side, vertical_first);
            return 1;
        }
        free(in);
        free(plain);
        free(vector);
    }
    printf("%d equal on path %d\n", rounds, (int)resize_best_path());
    return 0;
}
