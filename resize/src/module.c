/* What Python sees of resize.c: cnclip_resize._native. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

#include "jpeg.h"
#include "resize.h"

/* Apache Arrow's C data interface, as its specification lays it out. */
struct ArrowSchema {
    const char *format, *name, *metadata;
    int64_t flags, n_children;
    struct ArrowSchema **children, *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children, *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

/* The bytes of what an image exports, if they are `bytes` ones in rows without gaps, or NULL. */
static const uint8_t *
exported(PyObject *schema_capsule, PyObject *array_capsule, int channels, int64_t bytes) {
    const struct ArrowSchema *schema = PyCapsule_GetPointer(schema_capsule, "arrow_schema");
    const struct ArrowArray *array = schema ? PyCapsule_GetPointer(array_capsule, "arrow_array") : NULL;
    if (!array || !schema->release || !array->release || !schema->format) {
        return NULL;
    }
    if (channels == 4) {
        if (strcmp(schema->format, "+w:4") != 0 || schema->n_children != 1 || array->n_children != 1 ||
            array->length != bytes / 4 || array->offset != 0) {
            return NULL;
        }
        schema = schema->children[0];
        array = array->children[0];
    }
    if (!schema->format || strcmp(schema->format, "C") != 0 || array->n_buffers != 2 || array->length != bytes ||
        array->offset != 0) {
        return NULL;
    }
    return array->buffers[1];
}

static PyObject *
resize(PyObject *module, PyObject *arguments) {
    PyObject *schema, *array;
    int channels, wide, high, side, vertical_first, path;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "OOiiiipi:resize", &schema, &array, &channels, &wide, &high, &side, &vertical_first, &path
        )) {
        return NULL;
    }
    if ((channels != 4 && channels != 1) || wide < 1 || wide > RESIZE_LONGEST || high < 1 || high > RESIZE_LONGEST ||
        side < 1 || side > RESIZE_LARGEST_SQUARE) {
        Py_RETURN_NONE;
    }
    const uint8_t *in = exported(schema, array, channels, (int64_t)wide * high * channels);
    if (!in) {
        if (PyErr_Occurred()) {
            return NULL;
        }
        Py_RETURN_NONE;
    }
    PyObject *pixels = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)side * side * 3);
    if (!pixels) {
        return NULL;
    }
    uint8_t *out = (uint8_t *)PyBytes_AsString(pixels);
    enum resize_result result;
    /* The arguments are held by the caller meanwhile, and with them what they point to. */
    Py_BEGIN_ALLOW_THREADS
    result = resize_picture(in, channels, wide, high, side, vertical_first, (enum resize_path)path, out);
    Py_END_ALLOW_THREADS
    if (result != RESIZE_DONE) {
        Py_DECREF(pixels);
        Py_RETURN_NONE;
    }
    return pixels;
}

/* Takes one strip of rows, (schema, array, count) in Python. Gives 1, 0 where it is not known to be Pillow's, -1 on errors. */
static int
take_strip(struct resizing *resizing, PyObject *strip, int channels, int wide) {
    PyObject *schema, *array;
    int count;
    if (!PyTuple_Check(strip)) {
        PyErr_SetString(PyExc_TypeError, "a strip is a tuple of schema, array and count");
        return -1;
    }
    if (!PyArg_ParseTuple(strip, "OOi:strips", &schema, &array, &count)) {
        return -1;
    }
    if (count < 1 || count > RESIZE_LONGEST) {
        return 0;
    }
    const uint8_t *in = exported(schema, array, channels, (int64_t)wide * count * channels);
    if (!in) {
        return PyErr_Occurred() ? -1 : 0;
    }
    enum resize_result result;
    Py_BEGIN_ALLOW_THREADS
    result = resize_rows(resizing, in, count);
    Py_END_ALLOW_THREADS
    return result == RESIZE_DONE;
}

static PyObject *
strips(PyObject *module, PyObject *arguments) {
    PyObject *iterator, *pixels = NULL;
    int channels, wide, high, side, vertical_first, path;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "Oiiiipi:strips", &iterator, &channels, &wide, &high, &side, &vertical_first, &path
        )) {
        return NULL;
    }
    if (!PyIter_Check(iterator)) {
        PyErr_SetString(PyExc_TypeError, "strips are given by an iterator");
        return NULL;
    }
    struct resizing *resizing = resize_begin(channels, wide, high, side, vertical_first, (enum resize_path)path);
    if (!resizing) {
        Py_RETURN_NONE;
    }
    PyObject *strip;
    int taken = 1;
    while (taken == 1 && (strip = PyIter_Next(iterator))) {
        taken = take_strip(resizing, strip, channels, wide);
        Py_DECREF(strip);
    }
    if (!PyErr_Occurred() && taken == 1) {
        pixels = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)side * side * 3);
        if (pixels && resize_end(resizing, (uint8_t *)PyBytes_AsString(pixels)) != RESIZE_DONE) {
            Py_DECREF(pixels);
            pixels = NULL;
        }
    }
    resize_free(resizing);
    if (!pixels && !PyErr_Occurred()) {
        Py_RETURN_NONE;
    }
    return pixels;
}

/* Pillow's libjpeg, once it is found; it stays loaded as long as Pillow does, which is for good. */
static struct jpeg_library jpegs;
static int has_jpegs;

static PyObject *
find_jpeg(PyObject *module, PyObject *arguments) {
    PyObject *path;
    (void)module;
    /* A path's own bytes: where Python takes the locale for ASCII, as in Triton's stub, it is no UTF-8 string. */
    if (!PyArg_ParseTuple(arguments, "O&:find_jpeg", PyUnicode_FSConverter, &path)) {
        return NULL;
    }
    /* Names are looked up where that library's own calls end: in it, and in those that it was linked with. */
    void *handle = dlopen(PyBytes_AsString(path), RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
    Py_DECREF(path);
    if (!handle) {
        return PyUnicode_FromString("it is not loaded");
    }
    const char *wrong = jpeg_library_find(&jpegs, handle);
    if (wrong) {
        return PyUnicode_FromString(wrong);
    }
    has_jpegs = 1;
    Py_RETURN_NONE;
}

static PyObject *
jpeg(PyObject *module, PyObject *arguments) {
    const char *file;
    Py_ssize_t bytes;
    int channels, wide, high, scale, side, vertical_first, path;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "y#iiiiipi:jpeg", &file, &bytes, &channels, &wide, &high, &scale, &side, &vertical_first, &path
        )) {
        return NULL;
    }
    if (!has_jpegs || side < 1 || side > RESIZE_LARGEST_SQUARE) {
        Py_RETURN_NONE;
    }
    PyObject *pixels = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)side * side * 3);
    if (!pixels) {
        return NULL;
    }
    uint8_t *out = (uint8_t *)PyBytes_AsString(pixels);
    enum resize_result result;
    Py_BEGIN_ALLOW_THREADS
    result = resize_jpeg(
        &jpegs, (const uint8_t *)file, (size_t)bytes, channels, wide, high, scale, side, vertical_first,
        (enum resize_path)path, out
    );
    Py_END_ALLOW_THREADS
    if (result != RESIZE_DONE) {
        Py_DECREF(pixels);
        Py_RETURN_NONE;
    }
    return pixels;
}

static PyMethodDef methods[] = {
    {"find_jpeg", find_jpeg, METH_VARARGS,
     "find_jpeg(path)\n--\n\nFinds the libjpeg of a loaded library. Gives None, or why `jpeg` can't use it."},
    {"jpeg", jpeg, METH_VARARGS,
     "jpeg(file, channels, wide, high, scale, side, vertical_first, path)\n--\n\n"
     "The square's pixels of a JPEG as bytes, or None where they may not be Pillow's."},
    {"resize", resize, METH_VARARGS,
     "resize(schema, array, channels, wide, high, side, vertical_first, path)\n--\n\n"
     "The square's pixels as bytes, or None where they may not be Pillow's."},
    {"strips", strips, METH_VARARGS,
     "strips(strips, channels, wide, high, side, vertical_first, path)\n--\n\n"
     "As `resize`, of a picture that comes in strips: an iterator of (schema, array, count of rows)."},
    {NULL, NULL, 0, NULL},
};

static int
fill(PyObject *module) {
    if (PyModule_AddIntConstant(module, "SCALAR", RESIZE_SCALAR) || PyModule_AddIntConstant(module, "AVX2", RESIZE_AVX2) ||
        PyModule_AddIntConstant(module, "VNNI", RESIZE_VNNI) || PyModule_AddIntConstant(module, "BEST", resize_best_path())) {
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_doc = "Resizes as Pillow does.", .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__native(void) {
    return PyModuleDef_Init(&definition);
}
