/* Frames and channels of tensors of any strides and dtype, read into and written from float32 vectors and tiles. A tile is a dense
   buffer in the first-level cache, where rows of a wide tensor would fall onto the same few cache sets. */
#ifndef MAMBAVOX_TILES_H
#define MAMBAVOX_TILES_H

#include "arrays.h"
#include "vector.h"

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float from_bfloat16(uint16_t half) { return from_bits((uint32_t)half << 16); }
INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

/* Half precision by moving the exponent with a multiplication, which also makes subnormals right. */
INLINE float from_float16(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t scaled = to_bits(from_bits(magnitude) * 0x1p112f);
    scaled |= magnitude >= 0x0f800000 ? 0x7f800000 : 0; /* infinities and NaN */
    return from_bits(scaled | sign);
}
INLINE uint16_t to_float16(float value) {
    uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
    /* Subnormal results: adding 0.5 leaves the rounded mantissa in the low bits. */
    uint32_t small = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000;
    uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    uint32_t result = magnitude < 0x38800000 ? small : normal;
    result = magnitude >= 0x477ff000 ? 0x7c00 : result;
    result = magnitude > 0x7f800000 ? 0x7e00 : result;
    return (uint16_t)(result | sign);
}

/* A tensor's frames in the order of the scan, from one frame and channel on. */
typedef struct {
    char *at;
    int64_t frame, channel, dtype; /* bytes to the next frame, bytes to the next channel */
} Stream;

INLINE Stream stream(const Array *array, const Row *row, int64_t first, int64_t reverse, int64_t channel) {
    const int64_t size = array->dtype == FLOAT32 ? 4 : 2, time = row->start + (reverse ? row->length - 1 - first : first);
    const int64_t offset = row->batch * array->batch_stride + time * array->time_stride + channel * array->channel_stride;
    /* An empty tensor has no memory to count from. */
    return (Stream){array->data ? array->data + size * offset : array->data, size * (reverse ? -array->time_stride : array->time_stride),
                    size * array->channel_stride, array->dtype};
}

INLINE float read_one(int64_t dtype, const char *at) {
    if (dtype == FLOAT32) return *(const float *)at;
    return dtype == BFLOAT16 ? from_bfloat16(*(const uint16_t *)at) : from_float16(*(const uint16_t *)at);
}
INLINE void write_one(int64_t dtype, char *at, float value) {
    if (dtype == FLOAT32)
        *(float *)at = value;
    else
        *(uint16_t *)at = dtype == BFLOAT16 ? to_bfloat16(value) : to_float16(value);
}

/* `channels` values from `from`, `step` bytes apart, to the row `to`, whose size is a multiple of LANES; what is left of it becomes zero. */
INLINE void read_row(int64_t dtype, const char *from, int64_t step, int channels, int width, float *to) {
    int c = 0;
    if (dtype == FLOAT32 && step == 4)
        for (; c + LANES <= channels; c += LANES) store(to + c, load((const float *)from + c));
    else if (dtype == BFLOAT16 && step == 2)
        for (; c + LANES <= channels; c += LANES)
            for (int i = c; i < c + LANES; i++) to[i] = from_bfloat16(((const uint16_t *)from)[i]);
    else if (dtype == FLOAT16 && step == 2)
        for (; c + LANES <= channels; c += LANES)
            for (int i = c; i < c + LANES; i++) to[i] = from_float16(((const uint16_t *)from)[i]);
    for (; c < channels; c++) to[c] = read_one(dtype, from + c * step);
    for (; c < width; c++) to[c] = 0.0f;
}
INLINE void write_row(int64_t dtype, char *to, int64_t step, int channels, const float *from) {
    int c = 0;
    if (dtype == FLOAT32 && step == 4)
        for (; c + LANES <= channels; c += LANES) store((float *)to + c, load(from + c));
    else if (dtype == BFLOAT16 && step == 2)
        for (; c + LANES <= channels; c += LANES)
            for (int i = c; i < c + LANES; i++) ((uint16_t *)to)[i] = to_bfloat16(from[i]);
    else if (dtype == FLOAT16 && step == 2)
        for (; c + LANES <= channels; c += LANES)
            for (int i = c; i < c + LANES; i++) ((uint16_t *)to)[i] = to_float16(from[i]);
    for (; c < channels; c++) write_one(dtype, to + c * step, from[c]);
}

/* Spans of tensors that will be read, or written, soon. Frames of a wide tensor lie pages apart, which no hardware prefetcher follows, and
   a store to memory that is not in the cache waits for it; so they are asked for between the computations, a few lines at a time. */
enum { READ = 0, WRITE = 1, FAR = 1024 };
typedef struct {
    Stream streams[4];
    int count;
} Ahead;

INLINE void look_ahead(Ahead *ahead, const Array *array, const Row *row, int64_t first, int64_t reverse, int64_t channel) {
    const Stream s = stream(array, row, first, reverse, channel);
    if (s.channel <= 4 && (s.frame >= FAR || s.frame <= -FAR)) ahead->streams[ahead->count++] = s;
}
/* Ask for SPAN frames of LANES channels from the tile's channel c on. */
INLINE void ask(const Ahead *ahead, int c, const int purpose) {
    for (int i = 0; i < ahead->count; i++) {
        const Stream s = ahead->streams[i];
        for (int t = 0; t < SPAN; t++) __builtin_prefetch(s.at + t * s.frame + c * s.channel, purpose, 2);
    }
}

/* frames x channels to tile[frame][width]. */
static __attribute__((noinline)) void load_tile(const Array *array, const Row *row, int64_t first, int frames, int64_t reverse,
                                                int64_t channel, int channels, int width, float *tile) {
    const Stream s = stream(array, row, first, reverse, channel);
    const char *at = s.at;
    for (int t = 0; t < frames; t++, at += s.frame, tile += width)
        if (s.dtype == FLOAT32 && s.channel == 4 && channels % 64 == 0) /* the usual case */
            for (int c = 0; c < channels; c += LANES) store(tile + c, load((const float *)at + c));
        else
            read_row(s.dtype, at, s.channel, channels, width, tile);
}
static __attribute__((noinline)) void store_tile(const Array *array, const Row *row, int64_t first, int frames, int64_t reverse,
                                                 int64_t channel, int channels, int width, const float *tile) {
    const Stream s = stream(array, row, first, reverse, channel);
    char *at = s.at;
    for (int t = 0; t < frames; t++, at += s.frame, tile += width)
        if (s.dtype == FLOAT32 && s.channel == 4 && channels % 64 == 0)
            for (int c = 0; c < channels; c += LANES) store((float *)at + c, load(tile + c));
        else
            write_row(s.dtype, at, s.channel, channels, tile);
}

/* The same a frame at a time, without a copy where the tensor's own memory will do: the frame at `at` as `width` floats, and the place
   where a frame's results go before frame_done takes them to `at`. */
INLINE int in_place(const Stream *s, int channels) { return s->dtype == FLOAT32 && s->channel == 4 && channels % LANES == 0; }
INLINE const float *frame(const Stream *s, const char *at, int channels, int width, float *buffer) {
    if (in_place(s, channels)) return (const float *)at;
    read_row(s->dtype, at, s->channel, channels, width, buffer);
    return buffer;
}
INLINE float *frame_place(const Stream *s, char *at, int channels, float *buffer) { return in_place(s, channels) ? (float *)at : buffer; }
INLINE void frame_done(const Stream *s, char *at, int channels, const float *from) {
    if (from != (const float *)at) write_row(s->dtype, at, s->channel, channels, from);
}

/* Zeros in the frames beyond the row's length. */
static void clear_padding(const Array *array, const Row *row, int64_t channel, int channels) {
    Stream s = stream(array, row, row->length, 0, channel);
    for (int64_t time = row->length; time < row->capacity; time++, s.at += s.frame)
        for (int c = 0; c < channels; c++) write_one(s.dtype, s.at + c * s.channel, 0.0f);
}

#endif
