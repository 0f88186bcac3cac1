/*
 * Resizes pictures of random sizes, in memory that is not a byte longer than they are, on every path that this processor
 * has, and once more from pieces of random lengths. Built with sanitizers, which end it at the first wrong read or overflow;
 * it fails by itself where two ways differ. Arguments: a seed, and how many.
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

/* As resize_picture, from pieces that each lie in memory of their own. */
static enum resize_result
in_pieces(
    const uint8_t *in, int channels, int wide, int high, int side, int vertical_first, enum resize_path path, uint8_t *out
) {
    struct resizing *one = resize_begin(channels, wide, high, side, vertical_first, path);
    if (!one) {
        return RESIZE_UNSURE;
    }
    const size_t pitch = (size_t)wide * (size_t)channels;
    const int longest = between(1, 40);
    enum resize_result result = RESIZE_DONE;
    if (resize_end(one, out) != RESIZE_UNSURE || resize_rows(one, in, high + 1) != RESIZE_UNSURE ||
        resize_rows(one, in, -1) != RESIZE_UNSURE) {
        fprintf(stderr, "rows are not counted\n");
        exit(1);
    }
    for (int y = 0; y < high && result == RESIZE_DONE;) {
        const int rows = between(0, longest), count = rows < high - y ? rows : high - y;
        uint8_t *piece = malloc((size_t)count * pitch);
        memcpy(piece, in + (size_t)y * pitch, (size_t)count * pitch);
        result = resize_rows(one, piece, count);
        free(piece);
        y += count;
    }
    if (result == RESIZE_DONE) {
        result = resize_end(one, out);
    }
    resize_free(one);
    return result;
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
        const enum resize_result one =
            resize_picture(in, channels, wide, high, side, vertical_first, RESIZE_SCALAR, plain);
        for (int path = RESIZE_SCALAR; path <= (int)resize_best_path(); path++) {
            for (int pieces = 0; pieces < 2; pieces++) {
                memset(vector, 2, square);
                const enum resize_result two = (pieces ? in_pieces : resize_picture)(
                    in, channels, wide, high, side, vertical_first, (enum resize_path)path, vector
                );
                if (one != two || (one == RESIZE_DONE && memcmp(plain, vector, square) != 0)) {
                    fprintf(
                        stderr, "differs: %d channels, %d x %d to %d, order %d, path %d, pieces %d\n", channels, wide, high,
                        side, vertical_first, path, pieces
                    );
                    return 1;
                }
            }
        }
        free(in);
        free(plain);
        free(vector);
    }
    printf("%d equal on path %d\n", rounds, (int)resize_best_path());
    return 0;
}
