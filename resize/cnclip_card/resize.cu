/*
 * Pillow's bicubic resize of 8-bit RGB pictures to squares, on a card: the arithmetic of `resize/src/resize.c`, which says
 * where each step is from. Compiled without fused multiply-adds, whose last bits would be others.
 *
 * It keeps to what C and CUDA have in common: tests compile it for the processor and compare it with Pillow.
 */

#define WEIGHT_BITS 22
#define HALF (1 << (WEIGHT_BITS - 1))

/* The same in `Picture` of `_resize.py`. Axis 0 is the horizontal one, 1 the vertical. */
struct picture {
    const unsigned char *pixels; /* red, green and blue, a row every `pitch` bytes */
    long long pitch;
    unsigned char *between; /* what the first pass makes: all rows, shrunk, or `side` rows as wide as the picture */
    unsigned char *square;  /* side * side * 3 */
    int *tables[2];         /* for each sample the first of those it is made of, how many, and then `taps` weights */
    int size[2];
    int taps[2];
    int vertical_first;
    int unused;
};

__device__ static double
cubic(double x) {
    const double a = -0.5;
    if (x < 0.0) {
        x = -x;
    }
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    }
    if (x < 2.0) {
        return (((x - 5) * x + 8) * x - 4) * a;
    }
    return 0.0;
}

/* Fills the tables. Blocks: samples, pictures, axes. */
extern "C" __global__ void
weigh(const struct picture *pictures, int side) {
    const struct picture *one = pictures + blockIdx.y;
    const int sample = (int)(blockIdx.x * blockDim.x + threadIdx.x), axis = (int)blockIdx.z;
    if (sample >= side) {
        return;
    }
    const int size = one->size[axis];
    const double scale = (double)size / side;
    const double wider = scale < 1.0 ? 1.0 : scale;
    const double support = 2.0 * wider;
    const double narrower = 1.0 / wider;
    const double centre = (sample + 0.5) * scale;
    int first = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
    first = first < 0 ? 0 : first;
    end = end > size ? size : end;

    double sum = 0.0;
    for (int k = 0; k < end - first; k++) {
        sum += cubic((k + first - centre + 0.5) * narrower);
    }
    int *starts = one->tables[axis], *counts = starts + side;
    int *weights = counts + side + (long long)sample * one->taps[axis];
    for (int k = 0; k < end - first; k++) {
        double weight = cubic((k + first - centre + 0.5) * narrower);
        weight = sum != 0.0 ? weight / sum : weight;
        weights[k] = (int)(weight < 0 ? -0.5 + weight * (1 << WEIGHT_BITS) : 0.5 + weight * (1 << WEIGHT_BITS));
    }
    starts[sample] = first;
    counts[sample] = end - first;
}

/* One of the two passes over each picture. Blocks: pixels, of which each thread makes several; pictures. */
extern "C" __global__ void
shrink(const struct picture *pictures, int side, int second) {
    const struct picture *one = pictures + blockIdx.y;
    const int down = second != one->vertical_first;
    const unsigned columns = (unsigned)(down && !second ? one->size[0] : side);
    const unsigned rows = (unsigned)(!down && !second ? one->size[1] : side);
    const long long pitch = second ? 3LL * (one->vertical_first ? one->size[0] : side) : one->pitch;
    const unsigned char *in = second ? one->between : one->pixels;
    unsigned char *out = second ? one->square : one->between;
    const int *starts = one->tables[down], *counts = starts + side, *all = counts + side;
    const int taps = one->taps[down];

    /* No picture's side has more than 16 bits, and no square's more than 12. */
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * columns; i += gridDim.x * blockDim.x) {
        const unsigned y = i / columns, x = i % columns, sample = down ? y : x;
        const int *weights = all + (long long)sample * taps;
        const long long step = down ? pitch : 3;
        const unsigned char *from = in + (down ? 3LL * x : y * pitch) + starts[sample] * step;
        int sums[3] = {HALF, HALF, HALF};
        for (int k = 0; k < counts[sample]; k++, from += step) {
            for (int c = 0; c < 3; c++) {
                sums[c] += from[c] * weights[k];
            }
        }
        for (int c = 0; c < 3; c++) {
            const int value = sums[c] < 0 ? 0 : sums[c] >> WEIGHT_BITS;
            out[3LL * i + c] = (unsigned char)(value > 255 ? 255 : value);
        }
    }
}
