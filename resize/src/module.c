/* What Python sees of resize.c: cnclip_resize._native. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

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
    const char *copied;
    Py_ssize_t copied_bytes;
    int channels, wide, high, side, vertical_first, path;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "OOz#iiiipi:resize", &schema, &array, &copied, &copied_bytes, &channels, &wide, &high, &side,
            &vertical_first, &path
        )) {
        return NULL;
    }
    if ((channels != 4 && channels != 1) || wide < 1 || wide > RESIZE_LONGEST || high < 1 || high > RESIZE_LONGEST ||
        side < 1 || side > RESIZE_LARGEST_SQUARE) {
        Py_RETURN_NONE;
    }
    const int64_t bytes = (int64_t)wide * high * channels;
    const uint8_t *in = (const uint8_t *)copied;
    if (copied ? copied_bytes != bytes : !(in = exported(schema, array, channels, bytes))) {
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

static PyMethodDef methods[] = {
    {"resize", resize, METH_VARARGS,
     "resize(schema, array, copied, channels, wide, high, side, vertical_first, path)\n--\n\n"
     "The square's pixels as bytes, or None where they may not be Pillow's."},
    {NULL, NULL, 0, NULL},
};

static int
fill(PyObject *module) {
    if (PyModule_AddIntConstant(module, "SCALAR", RESIZE_SCALAR) || PyModule_AddIntConstant(module, "AVX2", RESIZE_AVX2) ||
        PyModule_AddIntConstant(module, "BEST", resize_best_path())) {
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
