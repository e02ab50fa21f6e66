/* Adding a mask's stream to a sum: samples of 1 to 8 bytes, big-endian, modulo 2**32 or 2**64.
 *
 * The sizes of the buffers are checked before anything is read or changed, and the interpreter's
 * lock is not held while the loops run.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
/* The same loop for processors that can shuffle bytes 32 at a time, chosen when it is loaded. */
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif

#define SAMPLE(TYPE, WIDTH)                                                                        \
    static inline TYPE sample_##WIDTH(const uint8_t *bytes)                                        \
    {                                                                                              \
        TYPE value = 0;                                                                            \
        for (int place = 0; place < (WIDTH); place++)                                              \
            value = (TYPE)(value << 8 | bytes[place]);                                             \
        return value;                                                                              \
    }

#define LOOPS(TYPE, WIDTH)                                                                         \
    SAMPLE(TYPE, WIDTH)                                                                            \
    FAST static void add_##WIDTH(TYPE *restrict total, const uint8_t *restrict stream,             \
                                 Py_ssize_t count)                                                 \
    {                                                                                              \
        for (Py_ssize_t i = 0; i < count; i++)                                                     \
            total[i] += sample_##WIDTH(stream + (WIDTH) * i);                                      \
    }                                                                                              \
    FAST static void subtract_##WIDTH(TYPE *restrict total, const uint8_t *restrict stream,        \
                                      Py_ssize_t count)                                            \
    {                                                                                              \
        for (Py_ssize_t i = 0; i < count; i++)                                                     \
            total[i] -= sample_##WIDTH(stream + (WIDTH) * i);                                      \
    }

LOOPS(uint32_t, 1)
LOOPS(uint32_t, 2)
LOOPS(uint32_t, 3)
LOOPS(uint32_t, 4)
LOOPS(uint64_t, 5)
LOOPS(uint64_t, 6)
LOOPS(uint64_t, 7)
LOOPS(uint64_t, 8)

#define CASE(WIDTH)                                                                                \
    case WIDTH:                                                                                    \
        if (sign > 0)                                                                              \
            add_##WIDTH(total.buf, stream.buf, count);                                             \
        else                                                                                       \
            subtract_##WIDTH(total.buf, stream.buf, count);                                        \
        break;

PyDoc_STRVAR(add_doc,
"add($module, total, stream, width, sign, /)\n--\n\n"
"Add the samples of a stream to a total, or subtract them.\n\n"
":param total: aligned uint32 for a width up to 4, uint64 above; changed in place.\n"
":param stream: as many samples.\n"
":param width: of a sample, in bytes.\n"
":raises ValueError: if the sizes do not fit.");

static PyObject *add(PyObject *self, PyObject *args)
{
    Py_buffer total, stream;
    int width, sign;
    if (!PyArg_ParseTuple(args, "w*y*ii:add", &total, &stream, &width, &sign))
        return NULL;
    Py_ssize_t size = width <= 4 ? 4 : 8, count = total.len / size;
    int fits = width >= 1 && width <= 8 && total.len % size == 0 && stream.len == count * width &&
               ((uintptr_t)total.buf) % (uintptr_t)size == 0;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        switch (width) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&stream);
    PyBuffer_Release(&total);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "the stream does not fit the total");
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"add", add, METH_VARARGS, add_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_loops", NULL, 0, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__loops(void) { return PyModule_Create(&module); }
