#include "resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if RESIZE_HAS_AVX2
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#define VNNI __attribute__((target("avx2,avx512vl,avx512vnni")))
#endif

/* Pillow's fixed point for 8-bit channels (src/libImaging/Resample.c): sums of 32 bits, weights of 22. */
#define WEIGHT_BITS 22
#define HALF (1 << (WEIGHT_BITS - 1))

/* AVX2 multiplies 16 bits by 16: a weight is high * 256 + low, with low from 0 to 255. */
#define LOW_BITS 8
/* VNNI multiplies 8 bits by 8: a weight is the sum of as many signed bytes, each times 256 to the power of its place. */
#define DIGITS 3
/* Of all weights of a sample, without their signs: each high part has 16 bits then, and no sum of 255s more than 32. */
#define MOST_WEIGHT ((1 << 23) - 1)
#define MOST_TAPS 16384

/* Rows that the vector paths work on together: they share the loads of the weights. */
#define ROWS_RGB 8
#define ROWS_GREY 4

/* How the samples of one axis are made: sample i is the weighted sum of `taps` ones from `starts[i]`. */
struct table {
    int taps;
    int *starts;
    int32_t *weights; /* [samples][taps] */
    int16_t *high;    /* the same shape, and `low` too */
    int16_t *low;
    int8_t *digits; /* [samples][DIGITS][taps], the lowest first */
};

static void
table_free(struct table *table) {
    free(table->starts);
    free(table->weights);
    free(table->high);
    free(table->low);
    free(table->digits);
}

/* Keys' bicubic with a = -0.5, in the order of operations that Pillow has: the last bit counts. */
static double
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

static int32_t
fixed_point(double weight) {
    return (int32_t)(weight < 0 ? -0.5 + weight * (1 << WEIGHT_BITS) : 0.5 + weight * (1 << WEIGHT_BITS));
}

/* First and last one past it of the source's samples that weigh on sample i. */
static void
bounds(int i, int size, double scale, double support, int *first, int *end) {
    const double centre = (i + 0.5) * scale;
    *first = (int)(centre - support + 0.5);
    if (*first < 0) {
        *first = 0;
    }
    *end = (int)(centre + support + 0.5);
    if (*end > size) {
        *end = size;
    }
}

/*
 * Fills a table of `side` samples from `size`. All have as many taps, a multiple of `multiple` where the source is long
 * enough: what is too many has weight 0 and lies inside the source all the same.
 */
static enum resize_result
table_make(struct table *table, int size, int side, int multiple) {
    const double scale = (double)size / side;
    const double wider = scale < 1.0 ? 1.0 : scale;
    const double support = 2.0 * wider;
    const double narrower = 1.0 / wider;
    int most = 1, first, end;

    memset(table, 0, sizeof *table);
    for (int i = 0; i < side; i++) {
        bounds(i, size, scale, support, &first, &end);
        if (end - first > most) {
            most = end - first;
        }
    }
    most = (most + multiple - 1) / multiple * multiple;
    const int taps = most < size ? most : size;
    if (taps > MOST_TAPS) {
        return RESIZE_UNSURE;
    }
    const size_t all = (size_t)side * (size_t)taps;
    double *exact = malloc((size_t)taps * sizeof *exact);
    table->taps = taps;
    table->starts = malloc((size_t)side * sizeof *table->starts);
    table->weights = calloc(all, sizeof *table->weights);
    table->high = malloc(all * sizeof *table->high);
    table->low = malloc(all * sizeof *table->low);
    table->digits = malloc(all * DIGITS);
    if (!exact || !table->starts || !table->weights || !table->high || !table->low || !table->digits) {
        free(exact);
        return RESIZE_UNSURE;
    }
    for (int i = 0; i < side; i++) {
        bounds(i, size, scale, support, &first, &end);
        const double centre = (i + 0.5) * scale;
        const int count = end - first;
        double sum = 0.0;
        for (int k = 0; k < count; k++) {
            exact[k] = cubic((k + first - centre + 0.5) * narrower);
            sum += exact[k];
        }
        const int start = first + taps > size ? size - taps : first;
        int32_t *weights = table->weights + (size_t)i * (size_t)taps;
        int64_t reach = 0;
        for (int k = 0; k < count; k++) {
            const double weight = sum != 0.0 ? exact[k] / sum : exact[k];
            if (!(weight > -1.9 && weight < 1.9)) {
                free(exact);
                return RESIZE_UNSURE;
            }
            weights[first - start + k] = fixed_point(weight);
            reach += labs((long)weights[first - start + k]);
        }
        if (reach > MOST_WEIGHT) {
            free(exact);
            return RESIZE_UNSURE;
        }
        table->starts[i] = start;
    }
    free(exact);
    for (size_t k = 0; k < all; k++) {
        table->low[k] = (int16_t)(table->weights[k] & ((1 << LOW_BITS) - 1));
        table->high[k] = (int16_t)((table->weights[k] - table->low[k]) / (1 << LOW_BITS));
        /* Weights are below 1.9 times 2^22, so that the last digit is one, too. */
        int32_t rest = table->weights[k];
        int8_t *digit = table->digits + k / (size_t)taps * DIGITS * (size_t)taps + k % (size_t)taps;
        for (int i = 0; i < DIGITS; i++) {
            const int32_t low = ((rest + 128) & 255) - 128;
            digit[i * taps] = (int8_t)low;
            rest = (rest - low) / 256;
        }
    }
    return RESIZE_DONE;
}

static uint8_t
clip(int32_t sum) {
    const int32_t value = sum < 0 ? 0 : sum >> WEIGHT_BITS;
    return value > 255 ? 255 : (uint8_t)value;
}

/* Shrinks rows: `rows` rows of `channels` bytes a pixel to as many of `kept` bytes a pixel. */
static void
across_scalar(
    const uint8_t *in, size_t pitch, int channels, int rows, const struct table *table, int side, uint8_t *out, int kept
) {
    for (int y = 0; y < rows; y++) {
        for (int x = 0; x < side; x++) {
            const int32_t *weights = table->weights + (size_t)x * (size_t)table->taps;
            const uint8_t *from = in + (size_t)y * pitch + (size_t)table->starts[x] * (size_t)channels;
            uint8_t *to = out + ((size_t)y * (size_t)side + (size_t)x) * (size_t)kept;
            for (int c = 0; c < kept; c++) {
                int32_t sum = HALF;
                for (int k = 0; k < table->taps; k++) {
                    sum += from[(size_t)k * (size_t)channels + (size_t)c] * weights[k];
                }
                to[c] = clip(sum);
            }
        }
    }
}

/* One row of shrunk columns, `bytes` long, from the rows of `in` that it is made of, which are as long. */
static void
down_scalar(const uint8_t *in, size_t bytes, const struct table *table, int sample, uint8_t *out) {
    const int32_t *weights = table->weights + (size_t)sample * (size_t)table->taps;
    for (size_t x = 0; x < bytes; x++) {
        int32_t sum = HALF;
        for (int k = 0; k < table->taps; k++) {
            sum += in[(size_t)k * bytes + x] * weights[k];
        }
        out[x] = clip(sum);
    }
}

#if RESIZE_HAS_AVX2

/* Two neighbours' 16-bit weights in every 32-bit lane. */
AVX2 static inline __m256i
pair(const int16_t *weights) {
    int32_t both;
    memcpy(&both, weights, sizeof both);
    return _mm256_set1_epi32(both);
}

/* The sums' values from those of their high and low parts. All of it is right modulo 2^32, and the sum fits. */
AVX2 static inline __m256i
joined(__m256i high, __m256i low) {
    return _mm256_add_epi32(_mm256_slli_epi32(high, LOW_BITS), low);
}

AVX2 static inline __m256i
shifted(__m256i sum) {
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(HALF)), WEIGHT_BITS);
}

/* Where the rows from `y` on lie. Too few are left: the last one is worked out several times. */
static inline void
rows_of_rgb(
    const uint8_t *in, size_t pitch, int rows, int y, int side, uint8_t *out, const uint8_t **from, uint8_t **to
) {
    for (int r = 0; r < ROWS_RGB; r++) {
        const size_t row = (size_t)(y + r < rows ? y + r : rows - 1);
        from[r] = in + row * pitch;
        to[r] = out + row * (size_t)side * 3;
    }
}

/* 16 bytes of one row, and of another above them. */
AVX2 static inline __m256i
two_rows(const uint8_t *one, const uint8_t *other) {
    const __m256i lower = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)one));
    return _mm256_inserti128_si256(lower, _mm_loadu_si128((const __m128i *)other), 1);
}

/* Stores pixel x of all rows: even rows' sums stand in the lower halves, odd ones' in the upper. */
AVX2 static inline void
store_rgb(const __m256i *sums, uint8_t **to, int x, int side) {
    uint8_t pixels[32];
    _mm256_storeu_si256(
        (__m256i *)pixels,
        _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]))
    );
    for (int r = 0; r < ROWS_RGB; r++) {
        const uint8_t *pixel = pixels + 4 * (r / 2) + 16 * (r % 2);
        if (x + 1 < side) { /* The fourth byte falls on the next pixel's place, and is overwritten with it. */
            memcpy(to[r] + 3 * (size_t)x, pixel, 4);
        } else {
            memcpy(to[r] + 3 * (size_t)x, pixel, 3);
        }
    }
}

/* Rows of 4 bytes a pixel to rows of 3. Taps are a multiple of 4. */
AVX2 static void
across_rgb_avx2(const uint8_t *in, size_t pitch, int rows, const struct table *table, int side, uint8_t *out) {
    /* Of 4 pixels, the first two (the last two) as 16-bit neighbours, channel by channel. */
    const __m256i former = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1)
    );
    const __m256i latter = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1)
    );
    for (int y = 0; y < rows; y += ROWS_RGB) {
        const uint8_t *from[ROWS_RGB];
        uint8_t *to[ROWS_RGB];
        rows_of_rgb(in, pitch, rows, y, side, out, from, to);
        for (int x = 0; x < side; x++) {
            const int16_t *high = table->high + (size_t)x * (size_t)table->taps;
            const int16_t *low = table->low + (size_t)x * (size_t)table->taps;
            const size_t start = (size_t)table->starts[x] * 4;
            __m256i highs[ROWS_RGB / 2], lows[ROWS_RGB / 2], sums[ROWS_RGB / 2];
            for (int r = 0; r < ROWS_RGB / 2; r++) {
                highs[r] = lows[r] = _mm256_setzero_si256();
            }
            for (int k = 0; k < table->taps; k += 4) {
                const size_t at = start + (size_t)k * 4;
                const __m256i high0 = pair(high + k), high1 = pair(high + k + 2);
                const __m256i low0 = pair(low + k), low1 = pair(low + k + 2);
                for (int r = 0; r < ROWS_RGB / 2; r++) {
                    const __m256i pixels = two_rows(from[2 * r] + at, from[2 * r + 1] + at);
                    const __m256i one = _mm256_shuffle_epi8(pixels, former), two = _mm256_shuffle_epi8(pixels, latter);
                    highs[r] = _mm256_add_epi32(highs[r], _mm256_madd_epi16(one, high0));
                    lows[r] = _mm256_add_epi32(lows[r], _mm256_madd_epi16(one, low0));
                    highs[r] = _mm256_add_epi32(highs[r], _mm256_madd_epi16(two, high1));
                    lows[r] = _mm256_add_epi32(lows[r], _mm256_madd_epi16(two, low1));
                }
            }
            for (int r = 0; r < ROWS_RGB / 2; r++) {
                sums[r] = shifted(joined(highs[r], lows[r]));
            }
            store_rgb(sums, to, x, side);
        }
    }
}

/* Four neighbours' digits in every 32-bit lane. */
AVX2 static inline __m256i
four(const int8_t *digits) {
    int32_t all;
    memcpy(&all, digits, sizeof all);
    return _mm256_set1_epi32(all);
}

/* As across_rgb_avx2. */
VNNI static void
across_rgb_vnni(const uint8_t *in, size_t pitch, int rows, const struct table *table, int side, uint8_t *out) {
    /* Of 4 pixels, channel by channel. */
    const __m256i by_channel = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
    );
    const size_t taps = (size_t)table->taps;
    for (int y = 0; y < rows; y += ROWS_RGB) {
        const uint8_t *from[ROWS_RGB];
        uint8_t *to[ROWS_RGB];
        rows_of_rgb(in, pitch, rows, y, side, out, from, to);
        for (int x = 0; x < side; x++) {
            const int8_t *digits = table->digits + (size_t)x * DIGITS * taps;
            const size_t start = (size_t)table->starts[x] * 4;
            __m256i parts[ROWS_RGB / 2][DIGITS], sums[ROWS_RGB / 2];
            for (int r = 0; r < ROWS_RGB / 2; r++) {
                parts[r][0] = parts[r][1] = parts[r][2] = _mm256_setzero_si256();
            }
            for (size_t k = 0; k < taps; k += 4) {
                const size_t at = start + k * 4;
                const __m256i zero = four(digits + k), one = four(digits + taps + k), two = four(digits + 2 * taps + k);
                for (int r = 0; r < ROWS_RGB / 2; r++) {
                    const __m256i pixels = _mm256_shuffle_epi8(two_rows(from[2 * r] + at, from[2 * r + 1] + at), by_channel);
                    parts[r][0] = _mm256_dpbusd_epi32(parts[r][0], pixels, zero);
                    parts[r][1] = _mm256_dpbusd_epi32(parts[r][1], pixels, one);
                    parts[r][2] = _mm256_dpbusd_epi32(parts[r][2], pixels, two);
                }
            }
            for (int r = 0; r < ROWS_RGB / 2; r++) {
                const __m256i upper = _mm256_add_epi32(_mm256_slli_epi32(parts[r][2], 8), parts[r][1]);
                sums[r] = shifted(_mm256_add_epi32(_mm256_slli_epi32(upper, 8), parts[r][0]));
            }
            store_rgb(sums, to, x, side);
        }
    }
}

/* Rows of 1 byte a pixel. Taps are a multiple of 16. */
AVX2 static void
across_grey_avx2(const uint8_t *in, size_t pitch, int rows, const struct table *table, int side, uint8_t *out) {
    for (int y = 0; y < rows; y += ROWS_GREY) {
        const uint8_t *from[ROWS_GREY];
        uint8_t *to[ROWS_GREY];
        for (int r = 0; r < ROWS_GREY; r++) {
            const size_t row = (size_t)(y + r < rows ? y + r : rows - 1);
            from[r] = in + row * pitch;
            to[r] = out + row * (size_t)side;
        }
        for (int x = 0; x < side; x++) {
            const int16_t *high = table->high + (size_t)x * (size_t)table->taps;
            const int16_t *low = table->low + (size_t)x * (size_t)table->taps;
            __m256i highs[ROWS_GREY], lows[ROWS_GREY];
            for (int r = 0; r < ROWS_GREY; r++) {
                highs[r] = lows[r] = _mm256_setzero_si256();
            }
            for (int k = 0; k < table->taps; k += 16) {
                const size_t at = (size_t)table->starts[x] + (size_t)k;
                const __m256i highs_here = _mm256_loadu_si256((const __m256i *)(high + k));
                const __m256i lows_here = _mm256_loadu_si256((const __m256i *)(low + k));
                for (int r = 0; r < ROWS_GREY; r++) {
                    const __m256i pixels = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(from[r] + at)));
                    highs[r] = _mm256_add_epi32(highs[r], _mm256_madd_epi16(pixels, highs_here));
                    lows[r] = _mm256_add_epi32(lows[r], _mm256_madd_epi16(pixels, lows_here));
                }
            }
            const __m256i former = _mm256_hadd_epi32(joined(highs[0], lows[0]), joined(highs[1], lows[1]));
            const __m256i latter = _mm256_hadd_epi32(joined(highs[2], lows[2]), joined(highs[3], lows[3]));
            const __m256i halves = _mm256_hadd_epi32(former, latter);
            const __m256i sums = shifted(_mm256_add_epi32(halves, _mm256_permute2x128_si256(halves, halves, 1)));
            const __m256i words = _mm256_packs_epi32(sums, sums);
            const int32_t pixels = _mm_cvtsi128_si32(_mm256_castsi256_si128(_mm256_packus_epi16(words, words)));
            uint8_t bytes[ROWS_GREY];
            memcpy(bytes, &pixels, sizeof bytes);
            for (int r = 0; r < ROWS_GREY; r++) {
                to[r][x] = bytes[r];
            }
        }
    }
}

/* As down_scalar; rows have 32 bytes or more. */
AVX2 static void
down_avx2(const uint8_t *in, size_t bytes, const struct table *table, int sample, uint8_t *out) {
    const __m256i zero = _mm256_setzero_si256();
    const int16_t *high = table->high + (size_t)sample * (size_t)table->taps;
    const int16_t *low = table->low + (size_t)sample * (size_t)table->taps;
    for (size_t x = 0; x < bytes; x += 32) {
        /* The last ones overlap those before them. */
        const size_t at = x + 32 <= bytes ? x : bytes - 32;
        __m256i highs[4], lows[4], sums[4];
        for (int i = 0; i < 4; i++) {
            highs[i] = lows[i] = _mm256_setzero_si256();
        }
        for (int k = 0; k < table->taps; k += 2) {
            const uint8_t *row = in + (size_t)k * bytes + at;
            __m256i one = _mm256_loadu_si256((const __m256i *)row), two = zero, weight_high, weight_low;
            if (k + 1 < table->taps) {
                two = _mm256_loadu_si256((const __m256i *)(row + bytes));
                weight_high = pair(high + k);
                weight_low = pair(low + k);
            } else {
                weight_high = _mm256_set1_epi32((uint16_t)high[k]);
                weight_low = _mm256_set1_epi32((uint16_t)low[k]);
            }
            const __m256i former = _mm256_unpacklo_epi8(one, two), latter = _mm256_unpackhi_epi8(one, two);
            const __m256i samples[4] = {
                _mm256_unpacklo_epi8(former, zero),
                _mm256_unpackhi_epi8(former, zero),
                _mm256_unpacklo_epi8(latter, zero),
                _mm256_unpackhi_epi8(latter, zero),
            };
            for (int i = 0; i < 4; i++) {
                highs[i] = _mm256_add_epi32(highs[i], _mm256_madd_epi16(samples[i], weight_high));
                lows[i] = _mm256_add_epi32(lows[i], _mm256_madd_epi16(samples[i], weight_low));
            }
        }
        for (int i = 0; i < 4; i++) {
            sums[i] = shifted(joined(highs[i], lows[i]));
        }
        _mm256_storeu_si256(
            (__m256i *)(out + at),
            _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]))
        );
    }
}

#endif

enum resize_path
resize_best_path(void) {
#if RESIZE_HAS_AVX2
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) {
        const int vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
        return vnni ? RESIZE_VNNI : RESIZE_AVX2;
    }
#endif
    return RESIZE_SCALAR;
}

static void
across(
    const uint8_t *in, int channels, int wide, int rows, const struct table *table, int side, enum resize_path path,
    uint8_t *out
) {
    const size_t pitch = (size_t)wide * (size_t)channels;
#if RESIZE_HAS_AVX2
    if (path == RESIZE_VNNI && channels == 4 && table->taps % 4 == 0) {
        across_rgb_vnni(in, pitch, rows, table, side, out);
        return;
    }
    if (path == RESIZE_AVX2 && channels == 4 && table->taps % 4 == 0) {
        across_rgb_avx2(in, pitch, rows, table, side, out);
        return;
    }
    if (path >= RESIZE_AVX2 && channels == 1 && table->taps % 16 == 0) {
        across_grey_avx2(in, pitch, rows, table, side, out);
        return;
    }
#endif
    (void)path;
    across_scalar(in, pitch, channels, rows, table, side, out, channels == 4 ? 3 : 1);
}

static void
down(const uint8_t *in, size_t bytes, const struct table *table, int sample, enum resize_path path, uint8_t *out) {
#if RESIZE_HAS_AVX2
    if (path >= RESIZE_AVX2 && bytes >= 32) {
        down_avx2(in, bytes, table, sample, out);
        return;
    }
#endif
    (void)path;
    down_scalar(in, bytes, table, sample, out);
}

/* A picture of which rows come from the top down. */
struct resizing {
    int channels, wide, high, side, vertical_first;
    enum resize_path path;
    struct table horizontal, vertical;
    int came;           /* rows */
    uint8_t *half_done; /* rows first: all rows, shrunk; columns first: `side` rows as wide as the picture */
    int samples;        /* of the vertical axis that are made; columns first alone */
    uint8_t *window;    /* the last rows that came, of which further samples are made; columns first alone */
    int window_first, window_rows, window_most;
};

struct resizing *
resize_begin(int channels, int wide, int high, int side, int vertical_first, enum resize_path path) {
    if ((channels != 4 && channels != 1) || wide < 1 || wide > RESIZE_LONGEST || high < 1 || high > RESIZE_LONGEST ||
        side < 1 || side > RESIZE_LARGEST_SQUARE || path < RESIZE_SCALAR || path > resize_best_path()) {
        return NULL;
    }
    /* Sides are below 2^20 and pixels have 4 bytes at most, so that no size of memory here overflows 64 bits. */
#if SIZE_MAX < UINT64_MAX
#error "sizes are counted in 64 bits"
#endif
    struct resizing *one = calloc(1, sizeof *one);
    if (!one) {
        return NULL;
    }
    one->channels = channels;
    one->wide = wide;
    one->high = high;
    one->side = side;
    one->vertical_first = vertical_first;
    one->path = path;
    const size_t kept = channels == 4 ? 3 : 1;
    const size_t between = (vertical_first ? (size_t)wide * (size_t)channels : (size_t)high * kept) * (size_t)side;
    one->half_done = malloc(between);
    if (!one->half_done || table_make(&one->horizontal, wide, side, channels == 4 ? 4 : 16) != RESIZE_DONE ||
        table_make(&one->vertical, high, side, 1) != RESIZE_DONE) {
        resize_free(one);
        return NULL;
    }
    return one;
}

void
resize_free(struct resizing *one) {
    table_free(&one->vertical);
    table_free(&one->horizontal);
    free(one->window);
    free(one->half_done);
    free(one);
}

/* Makes the samples of the vertical axis for which all rows are there: `rows` ones at `in`, the first being row `first`. */
static void
make_samples(struct resizing *one, const uint8_t *in, int first, int rows) {
    const size_t bytes = (size_t)one->wide * (size_t)one->channels;
    const struct table *table = &one->vertical;
    for (; one->samples < one->side && table->starts[one->samples] + table->taps <= first + rows; one->samples++) {
        const uint8_t *from = in + (size_t)(table->starts[one->samples] - first) * bytes;
        down(from, bytes, table, one->samples, one->path, one->half_done + (size_t)one->samples * bytes);
    }
}

enum resize_result
resize_rows(struct resizing *one, const uint8_t *in, int count) {
    if (count < 0 || count > one->high - one->came) {
        return RESIZE_UNSURE;
    }
    const size_t bytes = (size_t)one->wide * (size_t)one->channels;
    const int first = one->came;
    one->came += count;
    if (!one->vertical_first) {
        const size_t kept = (size_t)one->side * (one->channels == 4 ? 3 : 1);
        uint8_t *out = one->half_done + (size_t)first * kept;
        across(in, one->channels, one->wide, count, &one->horizontal, one->side, one->path, out);
        return RESIZE_DONE;
    }
    if (count == one->high) {
        make_samples(one, in, 0, count);
        return RESIZE_DONE;
    }
    if (!one->window) {
        one->window_most = one->vertical.taps + one->vertical.taps / 2 + 16;
        one->window = malloc((size_t)one->window_most * bytes);
        if (!one->window) {
            return RESIZE_UNSURE;
        }
    }
    for (int y = 0; y < count; y++) {
        if (one->window_rows == one->window_most) {
            /* Not all of them are wanted: a sample is made of `taps` rows, and all that have theirs are made. */
            const int unwanted = one->samples < one->side ? one->vertical.starts[one->samples] - one->window_first
                                                          : one->window_rows;
            const int dropped = unwanted < one->window_rows ? unwanted : one->window_rows;
            one->window_first += dropped;
            one->window_rows -= dropped;
            memmove(one->window, one->window + (size_t)dropped * bytes, (size_t)one->window_rows * bytes);
        }
        memcpy(one->window + (size_t)one->window_rows * bytes, in + (size_t)y * bytes, bytes);
        one->window_rows++;
        make_samples(one, one->window, one->window_first, one->window_rows);
    }
    return RESIZE_DONE;
}

enum resize_result
resize_end(const struct resizing *one, uint8_t *out) {
    if (one->came != one->high) {
        return RESIZE_UNSURE;
    }
    const size_t square = (size_t)one->side * (size_t)one->side;
    uint8_t *grey = one->channels == 1 ? malloc(square) : NULL;
    if (one->channels == 1 && !grey) {
        return RESIZE_UNSURE;
    }
    uint8_t *last = grey ? grey : out;
    if (one->vertical_first) {
        across(one->half_done, one->channels, one->wide, one->side, &one->horizontal, one->side, one->path, last);
    } else {
        const size_t bytes = (size_t)one->side * (one->channels == 4 ? 3 : 1);
        for (int y = 0; y < one->side; y++) {
            const uint8_t *from = one->half_done + (size_t)one->vertical.starts[y] * bytes;
            down(from, bytes, &one->vertical, y, one->path, last + (size_t)y * bytes);
        }
    }
    if (grey) {
        for (size_t i = 0; i < square; i++) {
            out[3 * i] = out[3 * i + 1] = out[3 * i + 2] = grey[i];
        }
        free(grey);
    }
    return RESIZE_DONE;
}

enum resize_result
resize_picture(
    const uint8_t *in, int channels, int wide, int high, int side, int vertical_first, enum resize_path path, uint8_t *out
) {
    struct resizing *one = resize_begin(channels, wide, high, side, vertical_first, path);
    if (!one) {
        return RESIZE_UNSURE;
    }
    enum resize_result result = resize_rows(one, in, high);
    if (result == RESIZE_DONE) {
        result = resize_end(one, out);
    }
    resize_free(one);
    return result;
}
