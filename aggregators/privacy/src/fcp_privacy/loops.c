/* Proposals of discrete noise, decided as fcp_privacy.noise does with NumPy, from the same words.
 *
 * Where the bits of a word do not decide, which is so about once in 2**30 proposals, the whole block
 * is left to NumPy. The sizes of the buffers are checked before anything is read or written, and the
 * interpreter's lock is not held while the loop runs.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>

/* As in noise.py: the error of a probability in double precision is far below this. */
#define ERROR 1e-13

typedef struct {
    int gaussian;
    uint64_t scale, usable;
    int shift; /* of a scale that is a power of two; -1 otherwise */
    double parts;
    const uint64_t *bounds;
    Py_ssize_t tails;
} Shape;

/* How many of the bounds a word is below; they rise. Most words are above all but the last three,
 * which are compared without a branch. Sets a flag if the word is one of the bounds. */
static inline uint64_t below_bounds(const Shape *shape, uint64_t word, int *open)
{
    const uint64_t *end = shape->bounds + shape->tails;
    uint64_t k = (uint64_t)(word < end[-1]) + (word < end[-2]) + (word < end[-3]);
    *open |= (word == end[-1]) | (word == end[-2]) | (word == end[-3]);
    if (k == 3) {
        while ((Py_ssize_t)k < shape->tails && word < end[-1 - (Py_ssize_t)k])
            k++;
        *open |= (Py_ssize_t)k < shape->tails && word == end[-1 - (Py_ssize_t)k];
    }
    return k;
}

/* Returns how many values were kept; -1 if a word does not decide. There are no branches that depend
 * on the words, but for rare ones: half of them would be guessed wrong. */
static inline Py_ssize_t decide(const Shape *shape, const uint64_t *first, const uint64_t *second,
                                Py_ssize_t count, int64_t *kept, Py_ssize_t room, int gaussian,
                                int shifted)
{
    const double scale = (double)shape->scale, part = 1.0 / shape->parts, step = part + ERROR;
    const double unit = 1.0 / scale; /* exact where it is used: for powers of two, as part is */
    Py_ssize_t done = 0;
    int open = 0;
    for (Py_ssize_t i = 0; i < count && done < room; i++) {
        uint64_t k = below_bounds(shape, first[i] >> 1, &open), quotient, j;
        int usable = 1;
        if (shifted) {
            quotient = second[i] >> shape->shift;
            j = second[i] & (shape->scale - 1);
        } else {
            quotient = second[i] / shape->scale;
            j = second[i] - quotient * shape->scale;
            usable = quotient < shape->usable;
        }
        double y = shifted ? (double)j * unit : (double)j / scale;
        double gamma = gaussian ? y * ((double)k + y / 2) : y;
        double low = shifted ? (double)quotient * part : (double)quotient / shape->parts;
        double probability = exp(-gamma);
        int keep = low + step < probability * (1 - ERROR);
        open |= !keep & (low - ERROR <= probability * (1 + ERROR)) & usable;
        uint64_t value = k * shape->scale + j, sign = -(first[i] & 1);
        keep &= usable & !((value == 0) & (int)(sign & 1));
        kept[done] = (int64_t)((value ^ sign) - sign);
        done += keep;
    }
    return open ? -1 : done;
}

static Py_ssize_t propose(const Shape *shape, const uint64_t *first, const uint64_t *second,
                          Py_ssize_t count, int64_t *kept, Py_ssize_t room)
{
    int shifted = shape->shift > 0;
    if (shape->gaussian)
        return shifted ? decide(shape, first, second, count, kept, room, 1, 1)
                       : decide(shape, first, second, count, kept, room, 1, 0);
    return shifted ? decide(shape, first, second, count, kept, room, 0, 1)
                   : decide(shape, first, second, count, kept, room, 0, 0);
}

static PyObject *loops_propose(PyObject *self, PyObject *args)
{
    Shape shape;
    Py_buffer words, bounds, kept;
    unsigned long long scale, usable;
    (void)self;
    if (!PyArg_ParseTuple(args, "pKKdy*y*w*", &shape.gaussian, &scale, &usable, &shape.parts,
                          &bounds, &words, &kept))
        return NULL;
    PyObject *result = NULL;
    if (!scale || words.len % 16 || bounds.len % 8 || bounds.len < 24 || kept.len % 8) {
        PyErr_SetString(PyExc_ValueError, "the buffers do not fit together");
    } else {
        Py_ssize_t count = words.len / 16, done;
        shape.scale = scale;
        shape.usable = usable;
        shape.shift = -1;
        if (!(scale & (scale - 1)))
            for (shape.shift = 0; (UINT64_C(1) << shape.shift) < scale;)
                shape.shift++;
        shape.bounds = bounds.buf;
        shape.tails = bounds.len / 8;
        const uint64_t *first = words.buf;
        Py_BEGIN_ALLOW_THREADS;
        done = propose(&shape, first, first + count, count, kept.buf, kept.len / 8);
        Py_END_ALLOW_THREADS;
        result = PyLong_FromSsize_t(done);
    }
    PyBuffer_Release(&words);
    PyBuffer_Release(&bounds);
    PyBuffer_Release(&kept);
    return result;
}

static PyMethodDef methods[] = {
    {"propose", loops_propose, METH_VARARGS,
     "propose(gaussian, scale, usable, parts, bounds, words, kept) -> number of values kept, or -1"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_loops", "Decides proposals of discrete noise.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__loops(void) { return PyModule_Create(&module); }
