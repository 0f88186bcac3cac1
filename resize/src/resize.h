/* Pillow's bicubic resize of a whole 8-bit picture to a square, equal to the byte, without Python. */
#ifndef CNCLIP_RESIZE_H
#define CNCLIP_RESIZE_H

#include <stdint.h>

#if (defined(__x86_64__) || defined(__amd64__)) && defined(__GNUC__)
#define RESIZE_HAS_AVX2 1
#else
#define RESIZE_HAS_AVX2 0
#endif

/* The largest picture and square that are taken. Pillow computes with a float's 24 bits of the picture's sides. */
#define RESIZE_LONGEST (1 << 20)
#define RESIZE_LARGEST_SQUARE 4096

enum resize_path { RESIZE_SCALAR = 0, RESIZE_AVX2 = 1 };
enum resize_result { RESIZE_DONE = 0, RESIZE_UNSURE = 1 };

/* The fastest path that this processor has. */
enum resize_path resize_best_path(void);

/*
 * Resizes.
 *
 * in: rows without gaps: `channels` bytes a pixel, either 4 (red, green, blue and one that is ignored) or 1 (grey).
 * wide, high: of the picture, in pixels.
 * side: of the square, in pixels.
 * vertical_first: whether columns are shrunk before rows; the bytes depend on it.
 * out: side * side * 3 bytes, red, green and blue; of a grey picture three times the same.
 *
 * Gives RESIZE_UNSURE, and leaves `out` as it happens to be, where the result may not be Pillow's: sizes out of range,
 * weights that 32 bits do not hold, no memory, a path that this processor has not.
 */
enum resize_result resize_picture(
    const uint8_t *in, int channels, int wide, int high, int side, int vertical_first, enum resize_path path, uint8_t *out
);

#endif
