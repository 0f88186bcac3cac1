/*
 * Damages JPEGs and has them decoded and resized, from memory that is not a byte longer than they are, on the plain and on
 * the fastest path, which must give the same. Built with sanitizers, which end it at the first wrong read or overflow on this
 * side of libjpeg. Arguments: a libjpeg, a seed, how many, and the files. Says how many were taken, and how many left.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

static uint64_t state;

static uint32_t
below(size_t most) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 16) % most);
}

/* The sizes and components of the first header, as Pillow reads them; 0 where there is none. */
static int
header(const uint8_t *file, size_t bytes, int *wide, int *high) {
    for (size_t at = 0; at + 10 < bytes; at++) {
        if (file[at] == 0xff && file[at + 1] >= 0xc0 && file[at + 1] <= 0xc2) {
            *high = file[at + 5] * 256 + file[at + 6];
            *wide = file[at + 7] * 256 + file[at + 8];
            return file[at + 9];
        }
    }
    return 0;
}

int
main(int count, char **arguments) {
    if (count < 5) {
        return 2;
    }
    void *handle = dlopen(arguments[1], RTLD_NOW);
    struct jpeg_library library;
    const char *wrong = handle ? jpeg_library_find(&library, handle) : dlerror();
    if (wrong) {
        fprintf(stderr, "%s\n", wrong);
        return 2;
    }
    state = strtoull(arguments[2], NULL, 10) * 2 + 1;
    const int rounds = atoi(arguments[3]);
    int taken = 0, left = 0;
    for (int round = 0; round < rounds; round++) {
        FILE *input = fopen(arguments[4 + below((size_t)count - 4)], "rb");
        static uint8_t whole[1 << 20];
        size_t bytes = input ? fread(whole, 1, sizeof whole, input) : 0;
        if (bytes < 16) {
            return 2;
        }
        fclose(input);
        const size_t damages = below(4);
        for (size_t i = 0; i < damages; i++) {
            const size_t at = below(below(2) ? bytes : 200 < bytes ? 200 : bytes), run = below(20) + 1;
            switch (below(5)) {
                case 0:
                    whole[at] = (uint8_t)(below(2) ? 0xff : 0);
                    break;
                case 1:
                    bytes = at + 1;
                    break;
                case 2:
                    memmove(whole + at, whole + (at + run < bytes ? at + run : at), at + run < bytes ? bytes - at - run : 0);
                    bytes -= at + run < bytes ? run : 0;
                    break;
                default:
                    whole[at] = (uint8_t)below(256);
            }
        }
        uint8_t *file = malloc(bytes);
        memcpy(file, whole, bytes);
        int wide = 1, high = 1;
        const int components = header(file, bytes, &wide, &high), channels = components == 1 ? 1 : 4;
        const int scale = below(4) ? 1 : 1 << below(4), side = (int)below(80) + 1, vertical_first = (int)below(2);
        if (below(30) == 0) {
            wide = (int)below(70000) - 10;
        }
        if (scale == 1 || below(2)) {
            wide = (wide + scale - 1) / scale;
            high = (high + scale - 1) / scale;
        }
        const size_t square = (size_t)side * (size_t)side * 3;
        uint8_t *plain = malloc(square), *vector = malloc(square);
        /* Pillow refuses what has more pixels than it is told to take. */
        if ((int64_t)wide * high > 3000000) {
            wide = 7;
        }
        const enum resize_result one =
            resize_jpeg(&library, file, bytes, channels, wide, high, scale, side, vertical_first, RESIZE_SCALAR, plain);
        const enum resize_result two = resize_jpeg(
            &library, file, bytes, channels, wide, high, scale, side, vertical_first, resize_best_path(), vector
        );
        if (one != two || (one == RESIZE_DONE && memcmp(plain, vector, square) != 0)) {
            fprintf(stderr, "differs in round %d: %d x %d at 1/%d to %d\n", round, wide, high, scale, side);
            return 1;
        }
        if (one == RESIZE_DONE) {
            taken++;
        } else {
            left++;
        }
        free(vector);
        free(plain);
        free(file);
    }
    printf("%d taken, %d left\n", taken, left);
    return 0;
}
