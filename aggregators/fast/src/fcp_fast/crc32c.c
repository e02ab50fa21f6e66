/* CRC-32C as polynomial arithmetic over two elements.
 *
 * The message is a polynomial; its CRC is the remainder of the message times x^32 by P. Bits are
 * reflected: the lowest bit of a word is the coefficient of its highest power.
 *
 * Folding: 128 bits A, d bits ahead of 128 bits B, may be replaced by B + (A * x^d mod P) without
 * changing the remainder. A's two halves are multiplied on their own, the first by x^(d+64), the
 * second by x^d. The carry-less product of two reflected 64-bit words, taken as a reflected 128-bit
 * word, is the product of the polynomials times x. A constant of 32 reflected bits in the low half
 * of a 64-bit word stands for itself times x^32, and shifting it left by one divides it by x, which
 * undoes the x of the product. So the constants are x^(d+32) and x^(d-32) mod P, shifted by one.
 *
 * At the end 128 bits are left, which the processor's CRC instruction takes like any others.
 */
#include "crc32c.h"

#include <string.h>

#define POLYNOMIAL 0x82f63b78u

static uint32_t tables[8][256];

/* Eight bytes at a time with a table for each. */
static uint32_t crc_portable(uint32_t crc, const uint8_t *bytes, size_t size)
{
    crc = ~crc;
    for (; size >= 8; bytes += 8, size -= 8) {
        uint32_t low = crc ^ ((uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 |
                              (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24);
        crc = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^
              tables[4][low >> 24] ^ tables[3][bytes[4]] ^ tables[2][bytes[5]] ^
              tables[1][bytes[6]] ^ tables[0][bytes[7]];
    }
    while (size--)
        crc = (crc >> 8) ^ tables[0][(crc ^ *bytes++) & 255];
    return ~crc;
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#define NARROW __attribute__((target("pclmul,sse4.2")))
#define WIDE __attribute__((target("avx512f,avx512vl,vpclmulqdq,pclmul,sse4.2")))

/* Return x^n mod P, reflected. */
static uint32_t power(unsigned n)
{
    uint32_t value = 0x80000000u;
    while (n--)
        value = (value >> 1) ^ (value & 1 ? POLYNOMIAL : 0);
    return value;
}

/* Return the product of two remainders mod P, all reflected. */
static uint32_t product(uint32_t one, uint32_t other)
{
    uint32_t sum = 0;
    for (; one; one <<= 1) {
        if (one & 0x80000000u)
            sum ^= other;
        other = (other >> 1) ^ (other & 1 ? POLYNOMIAL : 0);
    }
    return sum;
}

/* Return x^(8 n) mod P, reflected. */
static uint32_t power_of_bytes(size_t n)
{
    uint32_t value = power(0), square = power(8);
    for (; n; n >>= 1) {
        if (n & 1)
            value = product(value, square);
        square = product(square, square);
    }
    return value;
}

/* How far ahead the wide loop asks for its bytes; measured on 40 MB that no cache holds. */
#define AHEAD 4096

/* From this size on, two halves are read at once. */
#define TWO_STREAMS CRC32C_PEAK_LEAST

/* The pairs of constants for folding over 128, 512 and 2048 bits. */
static uint64_t over_128[2], over_512[2], over_2048[2];

static void constants(uint64_t pair[2], unsigned bits)
{
    pair[0] = (uint64_t)power(bits + 32) << 1;
    pair[1] = (uint64_t)power(bits - 32) << 1;
}

NARROW static uint32_t by_instruction(uint32_t crc, const uint8_t *bytes, size_t size)
{
    uint64_t wide = crc, word;
    for (; size >= 8; bytes += 8, size -= 8) {
        memcpy(&word, bytes, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    while (size--)
        crc = _mm_crc32_u8(crc, *bytes++);
    return crc;
}

NARROW static inline __m128i fold(__m128i ahead, __m128i pair, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(ahead, pair, 0x00);
    __m128i high = _mm_clmulepi64_si128(ahead, pair, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

NARROW static inline uint32_t remainder_of(__m128i last)
{
    uint64_t crc = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(last));
    return (uint32_t)_mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(last, 1));
}

NARROW static uint32_t crc_narrow(uint32_t crc, const uint8_t *bytes, size_t size)
{
    crc = ~crc;
    if (size >= 128) {
        const __m128i pair = _mm_loadu_si128((const __m128i *)over_512);
        const __m128i near = _mm_loadu_si128((const __m128i *)over_128);
        const __m128i *at = (const __m128i *)bytes;
        __m128i a = _mm_loadu_si128(at), b = _mm_loadu_si128(at + 1);
        __m128i c = _mm_loadu_si128(at + 2), d = _mm_loadu_si128(at + 3);
        a = _mm_xor_si128(a, _mm_cvtsi32_si128((int)crc));
        for (bytes += 64, size -= 64; size >= 64; bytes += 64, size -= 64) {
            at = (const __m128i *)bytes;
            a = fold(a, pair, _mm_loadu_si128(at));
            b = fold(b, pair, _mm_loadu_si128(at + 1));
            c = fold(c, pair, _mm_loadu_si128(at + 2));
            d = fold(d, pair, _mm_loadu_si128(at + 3));
        }
        crc = remainder_of(fold(fold(fold(a, near, b), near, c), near, d));
    }
    return ~by_instruction(crc, bytes, size);
}

WIDE static inline __m512i fold_wide(__m512i ahead, __m512i pair, __m512i next)
{
    __m512i low = _mm512_clmulepi64_epi128(ahead, pair, 0x00);
    __m512i high = _mm512_clmulepi64_epi128(ahead, pair, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96);
}

/* Four registers that hold the last 256 bytes of a stream, folded. */
typedef struct {
    __m512i a, b, c, d;
} Stream;

WIDE static inline void begin(Stream *stream, const uint8_t *bytes, uint32_t crc)
{
    stream->a = _mm512_xor_si512(_mm512_loadu_si512(bytes),
                                 _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    stream->b = _mm512_loadu_si512(bytes + 64);
    stream->c = _mm512_loadu_si512(bytes + 128);
    stream->d = _mm512_loadu_si512(bytes + 192);
}

WIDE static inline void take(Stream *stream, const uint8_t *bytes, __m512i pair)
{
    stream->a = fold_wide(stream->a, pair, _mm512_loadu_si512(bytes));
    stream->b = fold_wide(stream->b, pair, _mm512_loadu_si512(bytes + 64));
    stream->c = fold_wide(stream->c, pair, _mm512_loadu_si512(bytes + 128));
    stream->d = fold_wide(stream->d, pair, _mm512_loadu_si512(bytes + 192));
}

/* Bits of floats without their signs are ordered as the magnitudes are, NaN above all. */
WIDE static inline __m512i larger(__m512i peak, const uint8_t *bytes, int width)
{
    __m512i bits = _mm512_loadu_si512(bytes);
    if (width == 4)
        return _mm512_max_epi32(peak, _mm512_and_si512(bits, _mm512_set1_epi32(INT32_MAX)));
    return _mm512_max_epi64(peak, _mm512_and_si512(bits, _mm512_set1_epi64(INT64_MAX)));
}

WIDE static inline __m512i largest_of(__m512i peak, const uint8_t *bytes, int width)
{
    for (int line = 0; line < 256; line += 64)
        peak = larger(peak, bytes + line, width);
    return peak;
}

WIDE static inline uint32_t finish(const Stream *stream)
{
    const __m512i mid = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)over_512));
    const __m128i near = _mm_loadu_si128((const __m128i *)over_128);
    __m512i a = fold_wide(stream->a, mid, stream->b);
    a = fold_wide(fold_wide(a, mid, stream->c), mid, stream->d);
    __m128i last = _mm512_extracti32x4_epi32(a, 0);
    last = fold(last, near, _mm512_extracti32x4_epi32(a, 1));
    last = fold(last, near, _mm512_extracti32x4_epi32(a, 2));
    last = fold(last, near, _mm512_extracti32x4_epi32(a, 3));
    return remainder_of(last);
}

/* Memory answers two streams sooner than one; so this reads two halves of a multiple of 512 bytes.
 * A width of 0 does not look for the largest float. */
WIDE static inline __attribute__((always_inline)) uint32_t
two_streams(uint32_t crc, const uint8_t *bytes, size_t size, int width, __m512i *peak)
{
    const __m512i pair = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)over_2048));
    size_t half = size / 2;
    Stream one, two;
    __m512i first = _mm512_setzero_si512(), second = first;
    begin(&one, bytes, ~crc);
    begin(&two, bytes + half, 0);
    if (width) {
        first = largest_of(first, bytes, width);
        second = largest_of(second, bytes + half, width);
    }
    for (size_t at = 256; at < half; at += 256) {
        take(&one, bytes + at, pair);
        take(&two, bytes + half + at, pair);
        if (width) {
            first = largest_of(first, bytes + at, width);
            second = largest_of(second, bytes + half + at, width);
        }
    }
    if (width == 4)
        *peak = _mm512_max_epi32(first, second);
    else if (width == 8)
        *peak = _mm512_max_epi64(first, second);
    return ~(product(finish(&one), power_of_bytes(half)) ^ finish(&two));
}

WIDE static uint32_t crc_wide(uint32_t crc, const uint8_t *bytes, size_t size)
{
    if (size < 512)
        return crc_narrow(crc, bytes, size);
    if (size >= TWO_STREAMS) {
        size_t whole = size / 512 * 512;
        crc = two_streams(crc, bytes, whole, 0, NULL);
        return ~by_instruction(~crc, bytes + whole, size - whole);
    }
    const __m512i pair = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)over_2048));
    Stream stream;
    begin(&stream, bytes, ~crc);
    for (bytes += 256, size -= 256; size >= 256; bytes += 256, size -= 256)
        take(&stream, bytes, pair);
    return ~by_instruction(finish(&stream), bytes, size);
}

int crc32c_has_peak(void)
{
    return crc32c_methods[0].available;
}

WIDE uint32_t crc32c_peak(uint32_t crc, const uint8_t *bytes, size_t size, int width,
                          uint64_t *peak)
{
    __m512i found;
    if (width == 4) {
        crc = two_streams(crc, bytes, size, 4, &found);
        uint32_t bits = (uint32_t)_mm512_reduce_max_epi32(found);
        *peak = bits > *peak ? bits : *peak;
    } else {
        crc = two_streams(crc, bytes, size, 8, &found);
        uint64_t bits = (uint64_t)_mm512_reduce_max_epi64(found);
        *peak = bits > *peak ? bits : *peak;
    }
    return crc;
}

static void prepare_hardware(void)
{
    constants(over_128, 128);
    constants(over_512, 512);
    constants(over_2048, 2048);
    int narrow = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
    crc32c_methods[1].available = narrow;
    crc32c_methods[0].available = narrow && __builtin_cpu_supports("avx512f") &&
                                  __builtin_cpu_supports("avx512vl") &&
                                  __builtin_cpu_supports("vpclmulqdq");
}

crc_method crc32c_methods[] = {
    {"wide", crc_wide, 0},
    {"narrow", crc_narrow, 0},
    {"portable", crc_portable, 1},
    {NULL, NULL, 0},
};
#else
static void prepare_hardware(void) {}

int crc32c_has_peak(void)
{
    return 0;
}

uint32_t crc32c_peak(uint32_t crc, const uint8_t *bytes, size_t size, int width, uint64_t *peak)
{
    (void)bytes, (void)size, (void)width, (void)peak;
    return crc;
}

crc_method crc32c_methods[] = {
    {"portable", crc_portable, 1},
    {NULL, NULL, 0},
};
#endif

void crc32c_prepare(void)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? POLYNOMIAL : 0);
        tables[0][byte] = crc;
    }
    for (unsigned byte = 0; byte < 256; byte++)
        for (int i = 1; i < 8; i++)
            tables[i][byte] = (tables[i - 1][byte] >> 8) ^ tables[0][tables[i - 1][byte] & 255];
    prepare_hardware();
}

crc_function crc32c_method(const char *name)
{
    for (crc_method *method = crc32c_methods; method->name; method++)
        if (method->available && strcmp(method->name, name) == 0)
            return method->function;
    return NULL;
}

crc_function crc32c_best(void)
{
    for (crc_method *method = crc32c_methods; method->name; method++)
        if (method->available)
            return method->function;
    return crc_portable;
}
