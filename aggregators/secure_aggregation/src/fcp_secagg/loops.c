/* Adding a mask's stream to a sum: samples of 1 to 8 bytes, big-endian, modulo 2**32 or 2**64.
 *
 * The sizes of the buffers are checked before anything is read or changed, and the interpreter's
 * lock is not held while the loops run.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
/* The same loop for processors that can shuffle bytes 32 at a time, chosen when it is loaded. */
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define SWAPPED(BITS, word) __builtin_bswap##BITS(word)
#else
#define SWAPPED(BITS, word) (word)
#endif

/* The sample that begins at an address, in the form that compilers make vectors of. Those of 5 to 7
 * bytes are read with what follows them. */
static inline uint32_t sample_1(const uint8_t *bytes) { return bytes[0]; }

static inline uint32_t sample_3(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 8 | bytes[2];
}

#define SAMPLE(TYPE, BITS, WIDTH)                                                                  \
    static inline TYPE sample_##WIDTH(const uint8_t *bytes)                                        \
    {                                                                                              \
        uint##BITS##_t word;                                                                       \
        memcpy(&word, bytes, sizeof word);                                                         \
        return SWAPPED(BITS, word) >> (BITS - 8 * (WIDTH));                                        \
    }

SAMPLE(uint32_t, 16, 2)
SAMPLE(uint32_t, 32, 4)
SAMPLE(uint64_t, 64, 5)
SAMPLE(uint64_t, 64, 6)
SAMPLE(uint64_t, 64, 7)
SAMPLE(uint64_t, 64, 8)

/* The last samples are read byte by byte: there is nothing to read behind them. */
#define LOOP(NAME, TYPE, WIDTH, OPERATOR)                                                          \
    FAST static void NAME##_##WIDTH(TYPE *restrict total, const uint8_t *restrict stream,          \
                                    Py_ssize_t count)                                              \
    {                                                                                              \
        Py_ssize_t whole = count - (Py_ssize_t)sizeof(TYPE), i = 0;                                \
        for (; i < whole; i++)                                                                     \
            total[i] OPERATOR sample_##WIDTH(stream + (WIDTH) * i);                                \
        for (; i < count; i++) {                                                                   \
            TYPE value = 0;                                                                        \
            for (int place = 0; place < (WIDTH); place++)                                          \
                value = (TYPE)(value << 8 | stream[(WIDTH) * i + place]);                          \
            total[i] OPERATOR value;                                                               \
        }                                                                                          \
    }

#define LOOPS(TYPE, WIDTH)                                                                         \
    LOOP(add, TYPE, WIDTH, +=)                                                                     \
    LOOP(subtract, TYPE, WIDTH, -=)

LOOPS(uint32_t, 1)
LOOPS(uint32_t, 2)

#if defined(__GNUC__) && !defined(__clang__) && defined(__BYTE_ORDER__) &&                         \
    __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
/* Four samples of 3 bytes at a time: one shuffle spreads and swaps them. */
typedef uint8_t bytes_t __attribute__((vector_size(16)));
typedef uint32_t words_t __attribute__((vector_size(16)));

#define SPREAD(NAME, OPERATOR)                                                                     \
    FAST static void NAME##_3(uint32_t *restrict total, const uint8_t *restrict stream,            \
                              Py_ssize_t count)                                                    \
    {                                                                                              \
        const bytes_t none = {0};                                                                  \
        const bytes_t places = {2, 1, 0, 16, 5, 4, 3, 16, 8, 7, 6, 16, 11, 10, 9, 16};             \
        Py_ssize_t i = 0;                                                                          \
        for (; 3 * i + 16 <= 3 * count; i += 4) {                                                  \
            bytes_t read;                                                                          \
            words_t sum;                                                                           \
            memcpy(&read, stream + 3 * i, sizeof read);                                            \
            memcpy(&sum, total + i, sizeof sum);                                                   \
            sum OPERATOR (words_t)__builtin_shuffle(read, none, places);                           \
            memcpy(total + i, &sum, sizeof sum);                                                   \
        }                                                                                          \
        for (; i < count; i++)                                                                     \
            total[i] OPERATOR sample_3(stream + 3 * i);                                            \
    }

SPREAD(add, +=)
SPREAD(subtract, -=)
#else
LOOPS(uint32_t, 3)
#endif

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
