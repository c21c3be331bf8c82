// The largest magnitude of each block of a matrix, which block scales are made of.

#include <utility>

#include "lanes.h"

namespace {

constexpr int64_t kStretch = 1024;  // columns at a time, where blocks are narrower than a vector

inline U sizes_at(const void* x, int type, int64_t at) {
    return u(type == kFloat32 ? load((const float*)x + at) : widen((const uint16_t*)x + at)) & kMagnitude;
}
inline uint32_t size_at(const void* x, int type, int64_t at) {
    return (type == kFloat32 ? ((const uint32_t*)x)[at] : (uint32_t)((const uint16_t*)x)[at] << 16) & kMagnitude;
}

struct Rows {
    const void* x;
    int type;
    int64_t columns, first, last;  // columns of the matrix; rows from first to before last
};

// Of the columns from `begin` to before `end`, which are one block.
uint32_t amax_of(const Rows& r, int64_t begin, int64_t end) {
    U most{};
    uint32_t best = 0;
    for (int64_t row = r.first; row < r.last; ++row) {
        int64_t at = row * r.columns + begin, stop = row * r.columns + end;
        for (; at + kLanes <= stop; at += kLanes) most = largest(most, sizes_at(r.x, r.type, at));
        for (; at < stop; ++at) {
            uint32_t size = size_at(r.x, r.type, at);
            if (size > best) best = size;
        }
    }
    uint32_t of_lanes = largest_of(most);
    return of_lanes > best ? of_lanes : best;
}

// Of the columns from `begin` to before `end`, at most kStretch, in blocks that begin with them: down the rows first.
void amax_of_narrow(const Rows& r, int64_t begin, int64_t end, int64_t block_columns, float* amax) {
    alignas(64) uint32_t most[kStretch + kLanes];
    int64_t n = end - begin;
    std::memset(most, 0, n * 4);
    for (int64_t row = r.first; row < r.last; ++row) {
        int64_t at = row * r.columns + begin, i = 0;
        for (; i + kLanes <= n; i += kLanes) *(U*)(most + i) = largest(*(U*)(most + i), sizes_at(r.x, r.type, at + i));
        for (; i < n; ++i) {
            uint32_t size = size_at(r.x, r.type, at + i);
            if (size > most[i]) most[i] = size;
        }
    }
    for (int64_t i = 0; i < n; ++amax) {
        int64_t stop = i + block_columns < n ? i + block_columns : n;
        uint32_t best = 0;
        for (; i < stop; ++i)
            if (most[i] > best) best = most[i];
        *amax = bits_to_float(best);
    }
}

}  // namespace

extern "C" {

// Of each block of a contiguous matrix, as float32: NaN where there is one, 0 for nothing.
void altgrad_amax(const void* x, int type, int64_t rows, int64_t columns, int64_t block_rows, int64_t block_columns,
                  float* amax, int threads) {
    // Rows of whole blocks, one block after the other, make one long row.
    if (columns == 1) { std::swap(rows, columns); std::swap(block_rows, block_columns); }
    if (block_rows == 1 && columns % block_columns == 0) { columns *= rows; rows = 1; }
    int64_t down = (rows + block_rows - 1) / block_rows, across = (columns + block_columns - 1) / block_columns;
    // A whole number of blocks, so that no two threads share one.
    int64_t together = block_columns < kLanes ? kStretch / block_columns : 1;
    int64_t stretches = (across + together - 1) / together;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1 && rows * columns > 65536)
    for (int64_t d = 0; d < down; ++d)
        for (int64_t s = 0; s < stretches; ++s) {
            int64_t bottom = (d + 1) * block_rows < rows ? (d + 1) * block_rows : rows;
            int64_t begin = s * together * block_columns, end = begin + together * block_columns;
            Rows r{x, type, columns, d * block_rows, bottom};
            if (end > columns) end = columns;
            float* found = amax + d * across + s * together;
            if (block_columns < kLanes) amax_of_narrow(r, begin, end, block_columns, found);
            else *found = bits_to_float(amax_of(r, begin, end));
        }
}

}  // extern "C"
