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

/* Each processor that has one of them has those before it. VNNI: AVX-512's, on 256 bits. */
enum resize_path { RESIZE_SCALAR = 0, RESIZE_AVX2 = 1, RESIZE_VNNI = 2 };
enum resize_result { RESIZE_DONE = 0, RESIZE_UNSURE = 1 };

/* The fastest path that this processor has. */
enum resize_path resize_best_path(void);

/* A picture whose rows come bit by bit, from the top down. */
struct resizing;

/*
 * Begins one.
 *
 * channels: bytes of a pixel, either 4 (red, green, blue and one that is ignored) or 1 (grey).
 * wide, high: of the picture, in pixels.
 * side: of the square, in pixels.
 * vertical_first: whether columns are shrunk before rows; the bytes depend on it.
 *
 * Gives NULL where the result may not be Pillow's: sizes out of range, weights that 32 bits do not hold, no memory, a
 * path that this processor has not.
 */
struct resizing *resize_begin(int channels, int wide, int high, int side, int vertical_first, enum resize_path path);

/* Takes the next `count` rows, which have no gaps. RESIZE_UNSURE: they are more than `high`, or there is no memory. */
enum resize_result resize_rows(struct resizing *one, const uint8_t *in, int count);

/*
 * Makes the square, once all rows came. out: side * side * 3 bytes, red, green and blue; of a grey picture three times the
 * same. RESIZE_UNSURE: rows are missing, or memory.
 */
enum resize_result resize_end(const struct resizing *one, uint8_t *out);

/* Ends it, whatever came of it. */
void resize_free(struct resizing *one);

/* All of that for a picture that lies in memory as a whole. Leaves `out` as it happens to be where it is unsure. */
enum resize_result resize_picture(
    const uint8_t *in, int channels, int wide, int high, int side, int vertical_first, enum resize_path path, uint8_t *out
);

#endif
