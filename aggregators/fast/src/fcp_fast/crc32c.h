/* CRC-32C (Castagnoli), with the fastest instructions of the processor it runs on. */
#ifndef FCP_CRC32C_H
#define FCP_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Returns the CRC of some bytes, going on from that of what came before (0: nothing). */
typedef uint32_t (*crc_function)(uint32_t crc, const uint8_t *bytes, size_t size);

typedef struct {
    const char *name;
    crc_function function;
    int available;
} crc_method;

/* The methods, the fastest first; the last one has no name. Call crc32c_prepare() before. */
extern crc_method crc32c_methods[];

/* Compute tables and constants, and find out what the processor has. */
void crc32c_prepare(void);

/* The fastest available method, or the one of that name if it is available, otherwise NULL. */
crc_function crc32c_best(void);
crc_function crc32c_method(const char *name);

/* Whether crc32c_peak() can be called: the fastest method holds what it reads in wide registers. */
int crc32c_has_peak(void);

/* The fewest bytes that crc32c_peak() takes, and those of which it takes multiples. */
#define CRC32C_PEAK_LEAST (64 << 10)
#define CRC32C_PEAK_STEP 512

/* Return the CRC of floats of 4 or 8 bytes, and raise *peak to the bits of the largest of them
 * without their signs, in one pass over memory. */
uint32_t crc32c_peak(uint32_t crc, const uint8_t *bytes, size_t size, int width, uint64_t *peak);

#endif
