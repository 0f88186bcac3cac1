/* JPEGs decoded by Pillow's own libjpeg, as Pillow does, and resized row by row: no whole picture is ever there. */
#ifndef CNCLIP_JPEG_H
#define CNCLIP_JPEG_H

#include <stddef.h>

#include "resize.h"

struct jpeg_decompress;
struct jpeg_errors;

/* Functions of a libjpeg-turbo whose ABI is that of libjpeg 6.2, as they are named there. */
struct jpeg_library {
    struct jpeg_errors *(*std_error)(struct jpeg_errors *);
    void (*create)(struct jpeg_decompress *, int version, size_t bytes);
    int (*read_header)(struct jpeg_decompress *, int require_image);
    int (*start)(struct jpeg_decompress *);
    unsigned (*read_scanlines)(struct jpeg_decompress *, uint8_t **rows, unsigned most);
    int (*finish)(struct jpeg_decompress *);
    void (*destroy)(struct jpeg_decompress *);
    int (*resync)(struct jpeg_decompress *, int desired);
};

/*
 * Finds the functions among what `handle` (of dlopen) and the libraries that it needs define.
 * Gives NULL, or what is wrong: one is missing, or its ABI is another.
 */
const char *jpeg_library_find(struct jpeg_library *library, void *handle);

/*
 * Decodes and resizes a JPEG.
 *
 * file, bytes: the whole file.
 * channels: 4 for one of three components, 1 for a grey one; others are not decoded here.
 * wide, high: in pixels, once decoded at this scale.
 * scale: 1, or 2, 4 or 8 for a half, a quarter or an eighth of its size.
 * The others are resize_picture's.
 *
 * Gives RESIZE_UNSURE where the result may not be Pillow's, or where Pillow has something to say: the file is damaged in
 * any way that libjpeg would warn of, has no end, or other sizes or components.
 */
enum resize_result resize_jpeg(
    const struct jpeg_library *library, const uint8_t *file, size_t bytes, int channels, int wide, int high, int scale,
    int side, int vertical_first, enum resize_path path, uint8_t *out
);

#endif
