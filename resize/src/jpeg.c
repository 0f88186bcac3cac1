#include "jpeg.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

/* ABI 6.2, to which libjpeg-turbo keeps by default, on 64 bits; a libjpeg of another ABI refuses the size or the version. */
#define ABI 62
#define SIZE_OF_DECOMPRESS 632
#define COLOURS_GREY 1
#define COLOURS_RGBX 7
#define HEADER_OK 1

/* Rows that are decoded before they are shrunk; as many as the vector path works on together. */
#define ROWS 8

/* The fields that are used, where jpeglib.h has them. */
struct jpeg_errors {
    void (*error_exit)(struct jpeg_decompress *);
    void (*emit_message)(struct jpeg_decompress *, int level);
    void (*output_message)(struct jpeg_decompress *);
    char others[512]; /* More than any has. */
};

struct jpeg_source {
    const uint8_t *next_byte;
    size_t bytes;
    void (*init)(struct jpeg_decompress *);
    int (*fill)(struct jpeg_decompress *);
    void (*skip)(struct jpeg_decompress *, long count);
    int (*resync)(struct jpeg_decompress *, int desired);
    void (*term)(struct jpeg_decompress *);
};

struct jpeg_decompress {
    struct jpeg_errors *errors;
    void *memory, *progress, *client_data;
    int is_decompressor, state;
    struct jpeg_source *source;
    unsigned image_width, image_height;
    int components;
    int file_colours, colours;
    unsigned scale_numerator, scale_denominator;
    double gamma;
    int options[12];
    unsigned output_width, output_height;
    int output_colour_components, output_components;
    int rows_at_once, colour_map_length;
    void *colour_map;
    unsigned output_row;
    char others[SIZE_OF_DECOMPRESS - 172];
};

_Static_assert(sizeof(void *) == 8, "the layout is that of 64 bits");
_Static_assert(sizeof(struct jpeg_decompress) == SIZE_OF_DECOMPRESS, "");
_Static_assert(offsetof(struct jpeg_decompress, source) == 40, "");
_Static_assert(offsetof(struct jpeg_decompress, components) == 56, "");
_Static_assert(offsetof(struct jpeg_decompress, colours) == 64, "");
_Static_assert(offsetof(struct jpeg_decompress, scale_denominator) == 72, "");
_Static_assert(offsetof(struct jpeg_decompress, output_width) == 136, "");
_Static_assert(offsetof(struct jpeg_decompress, output_components) == 148, "");
_Static_assert(offsetof(struct jpeg_decompress, output_row) == 168, "");

/* One file under way. */
struct job {
    struct jpeg_decompress decompress; /* the first field: libjpeg's functions get its address */
    struct jpeg_errors errors;
    struct jpeg_source source;
    const struct jpeg_library *library;
    jmp_buf unsure;
    struct resizing *resizing;
    uint8_t *rows;
};

/* Ends the job: an error, a warning or a want of more bytes is Pillow's affair. */
static void
give_up(struct jpeg_decompress *decompress) {
    longjmp(((struct job *)decompress)->unsure, 1);
}

static void
emit_message(struct jpeg_decompress *decompress, int level) {
    if (level < 0) { /* A warning; others are traces. */
        give_up(decompress);
    }
}

static void
nothing(struct jpeg_decompress *decompress) {
    (void)decompress;
}

static int
fill(struct jpeg_decompress *decompress) {
    give_up(decompress);
    return 0;
}

static void
skip(struct jpeg_decompress *decompress, long count) {
    struct jpeg_source *source = decompress->source;
    if (count <= 0) {
        return;
    }
    if ((unsigned long)count > source->bytes) {
        give_up(decompress);
    }
    source->next_byte += count;
    source->bytes -= (size_t)count;
}

/* Has a job's library make its decompressor. Errors jump. */
static void
create(struct job *job) {
    job->decompress.errors = job->library->std_error(&job->errors);
    job->errors.error_exit = give_up;
    job->errors.emit_message = emit_message;
    job->errors.output_message = nothing;
    job->library->create(&job->decompress, ABI, sizeof job->decompress);
}

const char *
jpeg_library_find(struct jpeg_library *library, void *handle) {
    const struct {
        const char *name;
        void *function; /* its address' */
    } wanted[] = {
        {"jpeg_std_error", &library->std_error},
        {"jpeg_CreateDecompress", &library->create},
        {"jpeg_read_header", &library->read_header},
        {"jpeg_start_decompress", &library->start},
        {"jpeg_read_scanlines", &library->read_scanlines},
        {"jpeg_finish_decompress", &library->finish},
        {"jpeg_destroy_decompress", &library->destroy},
        {"jpeg_resync_to_restart", &library->resync},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(handle, wanted[i].name);
        if (!found) {
            return "its libjpeg is out of reach";
        }
        memcpy(wanted[i].function, &found, sizeof found);
    }
    struct job *job = calloc(1, sizeof *job);
    if (!job) {
        return "there is no memory";
    }
    job->library = library;
    const char *volatile wrong = NULL;
    if (setjmp(job->unsure)) {
        wrong = "its libjpeg has another ABI than 6.2";
    } else {
        create(job);
        library->destroy(&job->decompress);
    }
    free(job);
    return wrong;
}

static unsigned
divided(unsigned length, unsigned scale) {
    return (length + scale - 1) / scale;
}

static enum resize_result
decode(struct job *job, int channels, unsigned wide, unsigned high, unsigned scale) {
    struct jpeg_decompress *decompress = &job->decompress;
    const struct jpeg_library *library = job->library;
    uint8_t *rows[ROWS];
    if (setjmp(job->unsure)) {
        return RESIZE_UNSURE;
    }
    create(job);
    decompress->source = &job->source;
    if (library->read_header(decompress, 0) != HEADER_OK || decompress->components != (channels == 4 ? 3 : 1) ||
        divided(decompress->image_width, scale) != wide || divided(decompress->image_height, scale) != high) {
        return RESIZE_UNSURE;
    }
    /* Pillow's own settings; all others are libjpeg's. */
    decompress->colours = channels == 4 ? COLOURS_RGBX : COLOURS_GREY;
    if (scale > 1) {
        decompress->scale_numerator = 1;
        decompress->scale_denominator = scale;
    }
    if (!library->start(decompress) || decompress->output_width != wide || decompress->output_height != high ||
        decompress->output_components != channels) {
        return RESIZE_UNSURE;
    }
    for (size_t y = 0; y < ROWS; y++) {
        rows[y] = job->rows + y * (size_t)wide * (size_t)channels;
    }
    while (decompress->output_row < high) {
        const unsigned left = high - decompress->output_row, count = left < ROWS ? left : ROWS;
        unsigned came = 0;
        while (came < count) {
            const unsigned more = library->read_scanlines(decompress, rows + came, count - came);
            if (more == 0) {
                return RESIZE_UNSURE;
            }
            came += more;
        }
        if (resize_rows(job->resizing, job->rows, (int)count) != RESIZE_DONE) {
            return RESIZE_UNSURE;
        }
    }
    return library->finish(decompress) ? RESIZE_DONE : RESIZE_UNSURE;
}

enum resize_result
resize_jpeg(
    const struct jpeg_library *library, const uint8_t *file, size_t bytes, int channels, int wide, int high, int scale,
    int side, int vertical_first, enum resize_path path, uint8_t *out
) {
    if (scale != 1 && scale != 2 && scale != 4 && scale != 8) {
        return RESIZE_UNSURE;
    }
    struct job *job = calloc(1, sizeof *job);
    if (!job) {
        return RESIZE_UNSURE;
    }
    job->library = library;
    job->source = (struct jpeg_source){file, bytes, nothing, fill, skip, library->resync, nothing};
    job->resizing = resize_begin(channels, wide, high, side, vertical_first, path);
    enum resize_result result = RESIZE_UNSURE;
    if (job->resizing) {
        job->rows = malloc((size_t)wide * (size_t)channels * ROWS);
        if (job->rows) {
            result = decode(job, channels, (unsigned)wide, (unsigned)high, (unsigned)scale);
            library->destroy(&job->decompress);
        }
        if (result == RESIZE_DONE) {
            result = resize_end(job->resizing, out);
        }
        resize_free(job->resizing);
    }
    free(job->rows);
    free(job);
    return result;
}
