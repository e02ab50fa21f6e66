/* The loops over a contribution's bytes: comparing, checking and adding them.
 *
 * Every function takes its data through the buffer protocol, checks all offsets against the sizes of
 * the buffers before it reads or changes anything, and lets go of the interpreter's lock while it
 * works on more than a few kilobytes. Tables are int64, row by row.
 *
 * The numbers are NumPy's to the last bit: a product is rounded before it is added, so nothing here
 * may be contracted to fused multiply-adds or computed in a wider format.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "crc32c.h"

#ifdef __FAST_MATH__
#error "fast-math would change the numbers"
#endif
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "floats must be computed in their own format"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "checkpoints hold little-endian numbers, which these loops take as they are"
#endif

/* Below this many bytes the interpreter's lock is kept: giving it away costs more. */
#define SHORT_BYTES 16384

enum { MATCH_COLUMNS = 2, FLOATS_COLUMNS = 3, ROW_COLUMNS = 4 };

/* Whether start and end lie in order within size bytes, with room for extra bytes after them. */
static int within(int64_t start, int64_t end, int64_t extra, Py_ssize_t size)
{
    return start >= 0 && start <= end && end <= (int64_t)size - extra;
}

/* Return the rows of a table, or -1 with an exception set. */
static Py_ssize_t rows_of(const Py_buffer *table, int columns, const char *what)
{
    Py_ssize_t width = (Py_ssize_t)(columns * sizeof(int64_t));
    if (table->len % width || ((uintptr_t)table->buf) % sizeof(int64_t)) {
        PyErr_Format(PyExc_ValueError, "%s must be an aligned int64 array of %d columns", what,
                     columns);
        return -1;
    }
    return table->len / width;
}

static int out_of_bounds(const char *what, Py_ssize_t row)
{
    PyErr_Format(PyExc_ValueError, "%s: row %zd is out of bounds", what, row);
    return -1;
}

PyDoc_STRVAR(crc32c_doc,
"crc32c($module, data, value=0, method=None, /)\n--\n\n"
"Return the CRC-32C of *data*, going on from *value*.\n\n"
":param method: one of :data:`METHODS`; None: the fastest.\n"
":raises ValueError: for a method that this processor does not have.");

static PyObject *fast_crc32c(PyObject *module, PyObject *args)
{
    Py_buffer data;
    unsigned int value = 0;
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "y*|Iz:crc32c", &data, &value, &name))
        return NULL;
    crc_function function = name ? crc32c_method(name) : crc32c_best();
    if (!function) {
        PyBuffer_Release(&data);
        return PyErr_Format(PyExc_ValueError, "this processor has no method %s", name);
    }
    uint32_t crc;
    PyThreadState *state = data.len > SHORT_BYTES ? PyEval_SaveThread() : NULL;
    crc = function(value, data.buf, (size_t)data.len);
    if (state)
        PyEval_RestoreThread(state);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

PyDoc_STRVAR(same_doc,
"same($module, data, spans, expected, /)\n--\n\n"
"Return whether the parts of *data* that *spans* names are *expected*.\n\n"
":param spans: start and end of each part, int64[n, 2].\n"
":param expected: the parts, one after another.\n"
":raises ValueError: if a part does not lie within *data*, or the parts have another length.");

static PyObject *fast_same(PyObject *module, PyObject *args)
{
    Py_buffer data, spans, expected;
    if (!PyArg_ParseTuple(args, "y*y*y*:same", &data, &spans, &expected))
        return NULL;
    int result = -1;
    const int64_t *row = spans.buf;
    const char *bytes = data.buf, *wanted = expected.buf;
    Py_ssize_t rows = rows_of(&spans, MATCH_COLUMNS, "spans"), at = 0;
    if (rows < 0)
        goto done;
    for (Py_ssize_t i = 0; i < rows; i++) {
        int64_t start = row[2 * i], end = row[2 * i + 1];
        if (!within(start, end, 0, data.len)) {
            out_of_bounds("spans", i);
            goto done;
        }
        if (end - start > (int64_t)(expected.len - at)) {
            PyErr_SetString(PyExc_ValueError, "the parts are longer than what is expected");
            goto done;
        }
        at += (Py_ssize_t)(end - start);
    }
    if (at != expected.len) {
        PyErr_SetString(PyExc_ValueError, "the parts are shorter than what is expected");
        goto done;
    }
    result = 1;
    for (Py_ssize_t i = 0; i < rows && result; i++) {
        size_t length = (size_t)(row[2 * i + 1] - row[2 * i]);
        result = memcmp(bytes + row[2 * i], wanted, length) == 0;
        wanted += length;
    }
done:
    PyBuffer_Release(&data);
    PyBuffer_Release(&spans);
    PyBuffer_Release(&expected);
    return result < 0 ? NULL : PyBool_FromLong(result);
}

/* Elements come from any address: memcpy of one is an unaligned load. */
#define ADD_ONE(type, at, factor)                                                                 \
    do {                                                                                          \
        type value;                                                                               \
        memcpy(&value, source + (at) * (int64_t)sizeof(type), sizeof(type));                      \
        type product = value factor;                                                              \
        total[at] += product;                                                                     \
    } while (0)

/* Aligned stores first; the compiler turns the rest into vectors. */
#define ADD_MANY(type, factor)                                                                    \
    int64_t i = 0;                                                                                \
    for (; i < count && ((uintptr_t)(total + i) & 63); i++)                                       \
        ADD_ONE(type, i, factor);                                                                 \
    for (; i < count; i++)                                                                        \
        ADD_ONE(type, i, factor);

#define ADD(name, type, target)                                                                   \
    target static void name(type *restrict total, const char *restrict source, int64_t count)     \
    {                                                                                             \
        ADD_MANY(type, )                                                                          \
    }

#define ADD_PRODUCT(name, type, target)                                                           \
    target static void name(type *restrict total, const char *restrict source, int64_t count,     \
                            type weight)                                                          \
    {                                                                                             \
        ADD_MANY(type, *weight)                                                                   \
    }

/* Elements that one of several streams takes at a time. */
#define PIECE 1024

/* The largest magnitude as bits: of floats without their sign, where NaN and infinity are above all
 * numbers; of signed integers in ones' complement, so that it is one too small for negative ones.
 * Memory answers four streams sooner than one. */
#define PEAK(name, type, magnitude, target)                                                       \
    target static inline type name##_of(const char *source, int64_t count, type peak)             \
    {                                                                                             \
        for (int64_t i = 0; i < count; i++) {                                                     \
            type value;                                                                           \
            memcpy(&value, source + i * (int64_t)sizeof(type), sizeof(type));                     \
            value = magnitude;                                                                    \
            peak = value > peak ? value : peak;                                                   \
        }                                                                                         \
        return peak;                                                                              \
    }                                                                                             \
    target static type name(const char *source, int64_t count)                                    \
    {                                                                                             \
        int64_t part = count / (4 * PIECE) * PIECE, bytes = part * (int64_t)sizeof(type);         \
        type peak = 0;                                                                            \
        for (int64_t i = 0; i < part; i += PIECE) {                                               \
            const char *at = source + i * (int64_t)sizeof(type);                                  \
            for (int stream = 0; stream < 4; stream++)                                            \
                peak = name##_of(at + stream * bytes, PIECE, peak);                               \
        }                                                                                         \
        return name##_of(source + 4 * bytes, count - 4 * part, peak);                             \
    }

/* Unsigned integers, whose sums wrap around: signed ones have the same bits. */
typedef struct {
    int32_t (*peak_float)(const char *, int64_t);
    int64_t (*peak_double)(const char *, int64_t);
    int32_t (*peak_int32)(const char *, int64_t);
    int64_t (*peak_int64)(const char *, int64_t);
    uint32_t (*peak_uint32)(const char *, int64_t);
    uint64_t (*peak_uint64)(const char *, int64_t);
    void (*add_float)(float *, const char *, int64_t);
    void (*add_double)(double *, const char *, int64_t);
    void (*add_int32)(uint32_t *, const char *, int64_t);
    void (*add_int64)(uint64_t *, const char *, int64_t);
    void (*add_float_product)(float *, const char *, int64_t, float);
    void (*add_double_product)(double *, const char *, int64_t, double);
} Adders;

#define ADDERS(suffix, target)                                                                    \
    PEAK(peak_float_##suffix, int32_t, value & INT32_MAX, target)                                 \
    PEAK(peak_double_##suffix, int64_t, value & INT64_MAX, target)                                \
    PEAK(peak_int32_##suffix, int32_t, value < 0 ? ~value : value, target)                        \
    PEAK(peak_int64_##suffix, int64_t, value < 0 ? ~value : value, target)                        \
    PEAK(peak_uint32_##suffix, uint32_t, value, target)                                           \
    PEAK(peak_uint64_##suffix, uint64_t, value, target)                                           \
    ADD(add_float_##suffix, float, target)                                                        \
    ADD(add_double_##suffix, double, target)                                                      \
    ADD(add_int32_##suffix, uint32_t, target)                                                     \
    ADD(add_int64_##suffix, uint64_t, target)                                                     \
    ADD_PRODUCT(add_float_product_##suffix, float, target)                                        \
    ADD_PRODUCT(add_double_product_##suffix, double, target)                                      \
    static const Adders suffix##_adders = {                                                       \
        peak_float_##suffix, peak_double_##suffix,      peak_int32_##suffix,                      \
        peak_int64_##suffix, peak_uint32_##suffix,      peak_uint64_##suffix,                     \
        add_float_##suffix, add_double_##suffix,        add_int32_##suffix,                       \
        add_int64_##suffix, add_float_product_##suffix, add_double_product_##suffix};

ADDERS(any, )
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
/* Without FMA, which this name does not include. */
ADDERS(avx2, __attribute__((target("avx2"))))

static const Adders *choose_adders(void)
{
    return __builtin_cpu_supports("avx2") ? &avx2_adders : &any_adders;
}
#else
static const Adders *choose_adders(void) { return &any_adders; }
#endif

static const Adders *adders;

typedef enum { FLOAT, DOUBLE, INT32, INT64 } Kind;

static int kind_of(const char *name, Kind *kind)
{
    static const struct {
        const char *name;
        Kind kind;
    } kinds[] = {{"f4", FLOAT}, {"f8", DOUBLE}, {"i4", INT32},
                 {"u4", INT32}, {"i8", INT64},  {"u8", INT64}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(name, kinds[i].name) == 0) {
            *kind = kinds[i].kind;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "unknown kind %s", name);
    return -1;
}

/* Without a total any number of elements has room. */
static int check_rows(const int64_t *row, Py_ssize_t rows, int64_t size, Kind kind,
                      const Py_buffer *total, const Py_buffer *data, const Py_buffer *weights)
{
    int64_t room = (total ? total->len : data->len) / size;
    int64_t known = weights->len / (int64_t)sizeof(double);
    for (Py_ssize_t i = 0; i < rows; i++, row += ROW_COLUMNS) {
        int64_t first = row[0], source = row[1], count = row[2], weight = row[3];
        first = total ? first : 0;
        if (first < 0 || source < 0 || count < 0 || count > room || first > room - count ||
            count * size > (int64_t)data->len || source > (int64_t)data->len - count * size)
            return out_of_bounds("rows", i);
        if (weight < -1 || weight >= known || (weight >= 0 && kind != FLOAT && kind != DOUBLE))
            return out_of_bounds("rows (its weight)", i);
    }
    return 0;
}

static void add_rows(const int64_t *row, Py_ssize_t rows, Kind kind, void *total,
                     const char *data, const double *weights)
{
    for (Py_ssize_t i = 0; i < rows; i++, row += ROW_COLUMNS) {
        const char *source = data + row[1];
        switch (kind) {
        case FLOAT:
            if (row[3] < 0)
                adders->add_float((float *)total + row[0], source, row[2]);
            else
                adders->add_float_product((float *)total + row[0], source, row[2],
                                           (float)weights[row[3]]);
            break;
        case DOUBLE:
            if (row[3] < 0)
                adders->add_double((double *)total + row[0], source, row[2]);
            else
                adders->add_double_product((double *)total + row[0], source, row[2],
                                           weights[row[3]]);
            break;
        case INT32:
            adders->add_int32((uint32_t *)total + row[0], source, row[2]);
            break;
        case INT64:
            adders->add_int64((uint64_t *)total + row[0], source, row[2]);
            break;
        }
    }
}

PyDoc_STRVAR(add_doc,
"add($module, total, kind, data, rows, weights, /)\n--\n\n"
"Add elements of *data*, times weights where there are any, to *total*.\n\n"
":param total: an aligned array of numbers.\n"
":param kind: what they are: f4, f8, i4, u4, i8 or u8.\n"
":param rows: int64[n, 4]: the index in *total* and the byte of *data* where to begin, how many\n"
"    elements, and the index of the weight, or -1.\n"
":param weights: float64[m].\n"
":raises ValueError: if a row is out of bounds; *total* is not changed then.");

static PyObject *fast_add(PyObject *module, PyObject *args)
{
    Py_buffer total, data, rows, weights;
    const char *name;
    if (!PyArg_ParseTuple(args, "w*sy*y*y*:add", &total, &name, &data, &rows, &weights))
        return NULL;
    int result = -1;
    Kind kind;
    Py_ssize_t count = rows_of(&rows, ROW_COLUMNS, "rows");
    if (count < 0 || kind_of(name, &kind) < 0)
        goto done;
    int64_t size = kind == FLOAT || kind == INT32 ? 4 : 8;
    if (((uintptr_t)total.buf) % (uintptr_t)size || total.len % size ||
        ((uintptr_t)weights.buf) % sizeof(double)) {
        PyErr_SetString(PyExc_ValueError, "total and weights must be aligned arrays");
        goto done;
    }
    if (check_rows(rows.buf, count, size, kind, &total, &data, &weights) < 0)
        goto done;
    PyThreadState *state = data.len > SHORT_BYTES ? PyEval_SaveThread() : NULL;
    add_rows(rows.buf, count, kind, total.buf, data.buf, weights.buf);
    if (state)
        PyEval_RestoreThread(state);
    result = 0;
done:
    PyBuffer_Release(&total);
    PyBuffer_Release(&data);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&weights);
    if (result < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Return the magnitude times the weight; NaN if one of both is NaN, whatever the other is. */
static double weighted(double magnitude, const double *weights, int64_t weight)
{
    return weight < 0 ? magnitude : magnitude * fabs(weights[weight]);
}

static double peak_of_floats(const int64_t *row, Py_ssize_t rows, Kind kind, const char *data,
                             const double *weights)
{
    double peak = 0;
    for (Py_ssize_t i = 0; i < rows; i++, row += ROW_COLUMNS) {
        double value;
        if (kind == FLOAT) {
            int32_t bits = adders->peak_float(data + row[1], row[2]);
            float narrow;
            memcpy(&narrow, &bits, sizeof narrow);
            value = narrow;
        } else {
            int64_t bits = adders->peak_double(data + row[1], row[2]);
            memcpy(&value, &bits, sizeof value);
        }
        value = weighted(value, weights, row[3]);
        if (!(value <= DBL_MAX))
            return NAN;
        peak = value > peak ? value : peak;
    }
    return peak;
}

/* Return the larger of a magnitude and those of the floats; NaN stays. */
static double larger_of(double peak, const char *bytes, int64_t count, Kind kind)
{
    const int64_t row[ROW_COLUMNS] = {0, 0, count, -1};
    double found = peak_of_floats(row, 1, kind, bytes, NULL);
    return found <= peak || peak != peak ? peak : found;
}

/* Bytes of which the checksum is computed, and then the magnitude while a cache holds them. */
#define BOTH_BYTES (32 << 10)

/* Go on with the CRC over some floats, and raise the peak to the largest of them. */
static uint32_t crc_of_floats(crc_function function, uint32_t crc, const uint8_t *bytes,
                              int64_t size, Kind kind, double *peak)
{
    int64_t width = kind == FLOAT ? 4 : 8;
    if (crc32c_has_peak() && size >= CRC32C_PEAK_LEAST) {
        int64_t whole = size / CRC32C_PEAK_STEP * CRC32C_PEAK_STEP;
        uint64_t bits = 0;
        crc = crc32c_peak(crc, bytes, (size_t)whole, (int)width, &bits);
        if (kind == FLOAT) {
            uint32_t narrow = (uint32_t)bits;
            *peak = larger_of(*peak, (const char *)&narrow, 1, kind);
        } else {
            *peak = larger_of(*peak, (const char *)&bits, 1, kind);
        }
        bytes += whole;
        size -= whole;
    }
    while (size) {
        int64_t part = size < BOTH_BYTES ? size : BOTH_BYTES;
        crc = function(crc, bytes, (size_t)part);
        *peak = larger_of(*peak, (const char *)bytes, part / width, kind);
        bytes += part;
        size -= part;
    }
    return crc;
}

static int check_blocks(const int64_t *block, Py_ssize_t blocks, const int64_t *run,
                        Py_ssize_t runs, Py_ssize_t size)
{
    int64_t at = 0;
    for (Py_ssize_t i = 0; i < blocks; i++, block += MATCH_COLUMNS) {
        if (!within(block[0], block[1], 4, size) || block[0] < at)
            return out_of_bounds("blocks", i);
        at = block[1];
    }
    at = 0;
    for (Py_ssize_t i = 0; i < runs; i++, run += FLOATS_COLUMNS) {
        if (!within(run[0], run[1], 0, size) || run[0] < at || (run[2] != 4 && run[2] != 8) ||
            (run[1] - run[0]) % run[2])
            return out_of_bounds("floats", i);
        at = run[1];
    }
    return 0;
}

static int verify(const uint8_t *bytes, const int64_t *block, Py_ssize_t blocks,
                  const int64_t *run, Py_ssize_t runs, double *peaks)
{
    crc_function function = crc32c_best();
    for (Py_ssize_t i = 0; i < blocks; i++, block += MATCH_COLUMNS) {
        const uint8_t *end = bytes + block[1];
        int64_t at = block[0];
        uint32_t crc = 0;
        for (; runs && run[1] <= block[1]; runs--, run += FLOATS_COLUMNS, peaks++) {
            *peaks = 0;
            if (run[0] < at) {
                /* It is in no block. */
                *peaks = larger_of(0, (const char *)bytes + run[0], (run[1] - run[0]) / run[2],
                                   run[2] == 4 ? FLOAT : DOUBLE);
                continue;
            }
            crc = function(crc, bytes + at, (size_t)(run[0] - at));
            crc = crc_of_floats(function, crc, bytes + run[0], run[1] - run[0],
                                run[2] == 4 ? FLOAT : DOUBLE, peaks);
            at = run[1];
        }
        crc = function(crc, bytes + at, (size_t)(block[1] - at));
        uint32_t masked = ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
        uint32_t stored = (uint32_t)end[0] | (uint32_t)end[1] << 8 | (uint32_t)end[2] << 16 |
                          (uint32_t)end[3] << 24;
        if (masked != stored)
            return 0;
    }
    for (; runs; runs--, run += FLOATS_COLUMNS, peaks++)
        *peaks = larger_of(0, (const char *)bytes + run[0], (run[1] - run[0]) / run[2],
                           run[2] == 4 ? FLOAT : DOUBLE);
    return 1;
}

PyDoc_STRVAR(verify_doc,
"verify($module, data, blocks, floats, peaks, /)\n--\n\n"
"Return whether the masked CRC-32C of each block is in the four bytes after it.\n\n"
"On the way the largest magnitude of each run of floats is put into *peaks*: NaN unless all are\n"
"finite. What is there after a wrong checksum is undefined.\n\n"
":param blocks: start and end of each block in order, int64[n, 2].\n"
":param floats: start, end and bytes of an element of each run in order, int64[m, 3].\n"
":param peaks: float64[m].\n"
":raises ValueError: if a block and its checksum do not lie within *data*, or a run does not.");

static PyObject *fast_verify(PyObject *module, PyObject *args)
{
    Py_buffer data, blocks, floats, peaks;
    if (!PyArg_ParseTuple(args, "y*y*y*w*:verify", &data, &blocks, &floats, &peaks))
        return NULL;
    int result = -1;
    Py_ssize_t count = rows_of(&blocks, MATCH_COLUMNS, "blocks");
    Py_ssize_t runs = rows_of(&floats, FLOATS_COLUMNS, "floats");
    if (count < 0 || runs < 0)
        goto done;
    if (peaks.len != runs * (Py_ssize_t)sizeof(double) ||
        ((uintptr_t)peaks.buf) % sizeof(double)) {
        PyErr_SetString(PyExc_ValueError, "peaks must be an aligned array, one for each run");
        goto done;
    }
    if (check_blocks(blocks.buf, count, floats.buf, runs, data.len) < 0)
        goto done;
    PyThreadState *state = data.len > SHORT_BYTES ? PyEval_SaveThread() : NULL;
    result = verify(data.buf, blocks.buf, count, floats.buf, runs, peaks.buf);
    if (state)
        PyEval_RestoreThread(state);
done:
    PyBuffer_Release(&data);
    PyBuffer_Release(&blocks);
    PyBuffer_Release(&floats);
    PyBuffer_Release(&peaks);
    return result < 0 ? NULL : PyBool_FromLong(result);
}

static uint64_t peak_of_integers(const int64_t *row, Py_ssize_t rows, int narrow, int without_sign,
                                 const char *data)
{
    uint64_t peak = 0;
    for (Py_ssize_t i = 0; i < rows; i++, row += ROW_COLUMNS) {
        const char *source = data + row[1];
        uint64_t value;
        if (!row[2])
            continue;
        if (without_sign)
            value = narrow ? adders->peak_uint32(source, row[2])
                           : adders->peak_uint64(source, row[2]);
        else
            value = 1 + (narrow ? (uint64_t)adders->peak_int32(source, row[2])
                                : (uint64_t)adders->peak_int64(source, row[2]));
        peak = value > peak ? value : peak;
    }
    return peak;
}

PyDoc_STRVAR(peak_doc,
"peak($module, kind, data, rows, weights, /)\n--\n\n"
"Return the largest magnitude of elements of *data*, times weights where there are any.\n\n"
"The arguments are those of :func:`add`. Of floats it is a float, and NaN unless all are finite;\n"
"of integers an integer, which is one too large for signed ones.\n\n"
":raises ValueError: if a row is out of bounds.");

static PyObject *fast_peak(PyObject *module, PyObject *args)
{
    Py_buffer data, rows, weights;
    const char *name;
    if (!PyArg_ParseTuple(args, "sy*y*y*:peak", &name, &data, &rows, &weights))
        return NULL;
    PyObject *result = NULL;
    Kind kind;
    Py_ssize_t count = rows_of(&rows, ROW_COLUMNS, "rows");
    if (count < 0 || kind_of(name, &kind) < 0)
        goto done;
    int64_t size = kind == FLOAT || kind == INT32 ? 4 : 8;
    if (((uintptr_t)weights.buf) % sizeof(double)) {
        PyErr_SetString(PyExc_ValueError, "weights must be an aligned array");
        goto done;
    }
    if (check_rows(rows.buf, count, size, kind, NULL, &data, &weights) < 0)
        goto done;
    int floats = kind == FLOAT || kind == DOUBLE;
    double number = 0;
    uint64_t integer = 0;
    PyThreadState *state = data.len > SHORT_BYTES ? PyEval_SaveThread() : NULL;
    if (floats)
        number = peak_of_floats(rows.buf, count, kind, data.buf, weights.buf);
    else
        integer = peak_of_integers(rows.buf, count, kind == INT32, name[0] == 'u', data.buf);
    if (state)
        PyEval_RestoreThread(state);
    result = floats ? PyFloat_FromDouble(number) : PyLong_FromUnsignedLongLong(integer);
done:
    PyBuffer_Release(&data);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&weights);
    return result;
}

static PyMethodDef methods[] = {
    {"crc32c", fast_crc32c, METH_VARARGS, crc32c_doc},
    {"same", fast_same, METH_VARARGS, same_doc},
    {"add", fast_add, METH_VARARGS, add_doc},
    {"peak", fast_peak, METH_VARARGS, peak_doc},
    {"verify", fast_verify, METH_VARARGS, verify_doc},
    {NULL, NULL, 0, NULL},
};

static int prepare(PyObject *module)
{
    crc32c_prepare();
    adders = choose_adders();
    PyObject *names = PyTuple_New(0);
    for (size_t i = 0; names && crc32c_methods[i].name; i++) {
        if (!crc32c_methods[i].available)
            continue;
        Py_ssize_t count = PyTuple_GET_SIZE(names);
        PyObject *name = PyUnicode_FromString(crc32c_methods[i].name);
        if (!name || _PyTuple_Resize(&names, count + 1) < 0) {
            Py_XDECREF(name);
            Py_CLEAR(names);
            break;
        }
        PyTuple_SET_ITEM(names, count, name);
    }
    if (!names)
        return -1;
    int hardware = PyTuple_GET_SIZE(names) > 1;
    if (PyModule_AddObject(module, "METHODS", names) < 0) {
        Py_DECREF(names);
        return -1;
    }
    PyObject *flag = PyBool_FromLong(hardware);
    if (PyModule_AddObject(module, "HARDWARE_CRC", flag) < 0) {
        Py_DECREF(flag);
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, prepare},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "fcp_fast._kernels", .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModuleDef_Init(&definition);
}
