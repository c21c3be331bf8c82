// Casts of float32 and bfloat16 matrices to the grid of a float format, on the CPU; what kernel.py does with tensor
// operations, in one pass over memory. Needs GCC's or Clang's vector extensions, no library. Bits equal kernel.py's.
//
// A matrix is worked on in chunks, which threads share out, and a chunk in tiles that stay in the first-level cache:
//
//     load, widen, scale -> round -> count -> multiply, narrow, store
//
// Nearest-even to formats of up to 7 exponent bits with one scale, the case of training, does it all in registers.
// Counting adds few operations: a tile's largest and smallest magnitude tell whether it can hold anything that
// overflowed, vanished, became subnormal or was not finite; only then is it counted element by element.
// Statistics are summed per chunk and the chunks added in order, so they do not depend on the number of threads.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16;
constexpr int64_t kTile = 1024;       // elements; five float tiles of 4 KiB fit in 32 KiB
constexpr int64_t kChunk = 64 * kTile;  // elements a thread takes at a time
constexpr int kFields = 10;           // statistics.FIELDS

typedef float F __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t U __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t H __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

constexpr uint32_t kSign = 0x80000000u, kMagnitude = 0x7fffffffu, kExponent = 0x7f800000u;

enum Type { kFloat32 = 0, kBFloat16 = 1 };
enum Path { kMagic = 0, kPowers = 1, kBits = 2 };  // M >= 1 and float32 range; M = 0 likewise; float32's own subnormals
enum Rounding { kNearestEven = 0, kNearestAway, kTowardZero, kUp, kDown, kStochastic };
enum Saturation { kFinite = 0, kPropagate, kNone };

struct Grid {
    int32_t path, mantissa_bits, bias, is_signed, has_inf, has_nan, has_negative_zero;
    float first_power;   // 2^(1 - bias): below it the spacing stays the same
    float min_normal;    // 0 for fixed point
    float min_positive, max_finite, beyond;
};

struct Draw {
    uint32_t low, high;
    int64_t first, columns;  // number of the first element; columns of the whole matrix
    int32_t bits;
};

inline F f(U v) { return (F)v; }
inline U u(F v) { return (U)v; }
inline F splat(float v) { return F{} + v; }
inline U splat(uint32_t v) { return U{} + v; }
inline F load(const float* p) { return *(const F*)p; }
inline U load(const uint32_t* p) { return *(const U*)p; }
inline void store(float* p, F v) { *(F*)p = v; }
inline float bits_to_float(uint32_t b) { float v; std::memcpy(&v, &b, 4); return v; }
inline uint32_t float_to_bits(float v) { uint32_t b; std::memcpy(&b, &v, 4); return b; }
inline F select(I mask, F a, F b) { return mask ? a : b; }
inline U select(I mask, U a, U b) { return mask ? a : b; }

// The second operand where either is NaN.
inline F smaller(F a, F b) {
#ifdef __AVX512F__
    return (F)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return a < b ? a : b;
#endif
}
inline F larger(F a, F b) {
#ifdef __AVX512F__
    return (F)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}
// a * b + c, rounded once or twice: only for products that are exact, and for sums of squares.
inline F multiply_add(F a, F b, F c) {
#ifdef __AVX512F__
    return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}
inline U largest(U a, U b) { return a > b ? a : b; }
inline U smallest(U a, U b) { return a < b ? a : b; }

inline F widen(const uint16_t* p) { return f(__builtin_convertvector(*(const H*)p, U) << 16); }

// To bfloat16, nearest even; a NaN becomes the quiet one, as in torch.
inline void narrow(uint16_t* p, F v) {
    U b = u(v);
    U rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    rounded = select((I)(v != v), splat(0x7fc0u), rounded);
    *(H*)p = __builtin_convertvector(rounded, H);
}

// ---------------------------------------------------------------------------------------------------------- rounding

// Largest power of two not above z, at least first_power, as bits.
inline U power_bits(F z, const Grid& g) { return largest(u(z) & kExponent, splat(float_to_bits(g.first_power))); }

template <int rounding>
inline I goes_up(F fraction, I odd, U sign) {
    if (rounding == kNearestEven) return (I)(fraction > 0.5f) | ((I)(fraction == 0.5f) & odd);
    if (rounding == kNearestAway) return (I)(fraction >= 0.5f);
    if (rounding == kUp) return (I)(fraction > 0.0f) & (I)(sign == 0u);
    if (rounding == kDown) return (I)(fraction > 0.0f) & (I)(sign != 0u);
    return I{};
}

// d = nearest even of fraction * 2^bits; up when d + (top bits of random) carries out of them.
inline I carries(F fraction, U random, int bits) {
    F scaled = fraction * bits_to_float((uint32_t)(127 + bits) << 23);
    // Below 2^23 the sum with 2^23 rounds to integers; from there on a float32 is an integer, up to 2^32 - 256 of them.
    F magic = splat(8388608.0f);
    F whole = select((I)(scaled < magic), (scaled + magic) - magic, scaled);
    U d = __builtin_convertvector(whole, U);
    if (bits == 32) return (I)(d + random < random);
    U r = random >> (uint32_t)(32 - bits);
    return (I)(d + r >= splat(1u << bits));
}

// Magnitudes z (at most beyond, or NaN) to magnitudes of the grid.
template <int path, int rounding>
inline F round_magnitude(F z, U sign, U random, int bits, const Grid& g) {
    if (path == kBits) {
        uint32_t drop = 23 - g.mantissa_bits;
        if (drop == 0) return z;
        U b = u(z), mask = splat((1u << drop) - 1u), low = b & mask, kept = b - low;
        uint32_t half = 1u << (drop - 1), unit = 1u << drop;
        U up;
        if (rounding == kNearestEven) up = (b + (half - 1u) + ((b >> drop) & 1u)) & ~mask;
        else if (rounding == kNearestAway) up = (b + half) & ~mask;
        else if (rounding == kTowardZero) up = kept;
        else if (rounding == kStochastic) {
            // low / 2^drop to `bits` bits, nearest even, then as in carries().
            U d, limit, r = random >> (uint32_t)(32 - bits);
            if (bits >= (int)drop) { d = low; limit = splat(unit); r = r >> (uint32_t)(bits - (int)drop); }
            else {
                uint32_t s = drop - bits;
                d = (low + ((1u << (s - 1)) - 1u) + ((low >> s) & 1u)) >> s;
                limit = splat(1u << bits);
            }
            up = kept + select((I)(d + r >= limit), splat(unit), splat(0u));
        } else {
            I away = (I)(low != 0u) & (rounding == kUp ? (I)(sign == 0u) : (I)(sign != 0u));
            up = kept + select(away, splat(unit), splat(0u));
        }
        return select((I)(z != z), z, f(up));
    }
    U p = power_bits(z, g);
    if (path == kMagic && rounding == kNearestEven) {
        // The sum's spacing is one unit: the addition itself rounds, ties to even.
        float c = bits_to_float((uint32_t)(127 + 23 - g.mantissa_bits) << 23) * 1.5f;
        F sum = multiply_add(f(p), splat(c), z);
        return multiply_add(f(p), splat(-c), sum);
    }
    U m = splat((uint32_t)g.mantissa_bits << 23);
    F units = z * f(splat(254u << 23) + m - p);
    // Truncation: 0 <= units < 2^22, or NaN, which the unit multiplies to NaN below.
    F whole = __builtin_convertvector(__builtin_convertvector(select((I)(units == units), units, F{}), I), F);
    F fraction = units - whole;
    // The code's parity, for M = 0, where the code is the exponent field; 0 below the first power.
    I odd = (I)((((p >> 23) + (uint32_t)(g.bias - 127)) & 1u) == 1u) & (I)(whole != 0.0f);
    I up = rounding == kStochastic ? carries(fraction, random, bits)
                                   : goes_up<rounding>(fraction, odd, sign);
    F q = (whole + select(up, splat(1.0f), F{})) * f(p - m);
    return select((I)(units == units), q, z);
}

template <int path, int rounding>
void round_tile(const float* y, const uint32_t* random, int bits, float* q, int64_t n, const Grid& g) {
    F bound = splat(g.beyond);
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = load(y + i);
        U sign = u(v) & kSign;
        F z = smaller(bound, f(u(v) & kMagnitude));
        U r = rounding == kStochastic ? load(random + i) : U{};
        F rounded = round_magnitude<path, rounding>(z, sign, r, bits, g);
        store(q + i, f(u(rounded) | sign));
    }
}

typedef void (*RoundTile)(const float*, const uint32_t*, int, float*, int64_t, const Grid&);

template <int path>
RoundTile round_tile_of(int rounding) {
    switch (rounding) {
        case kNearestEven: return round_tile<path, kNearestEven>;
        case kNearestAway: return round_tile<path, kNearestAway>;
        case kTowardZero: return round_tile<path, kTowardZero>;
        case kUp: return round_tile<path, kUp>;
        case kDown: return round_tile<path, kDown>;
        default: return round_tile<path, kStochastic>;
    }
}

// Numbers first, first + 1, ... hashed as in stochastic.py; they share their high 32 bits.
void draw_tile(uint32_t first, uint32_t low, uint32_t high, uint32_t* random, int64_t n) {
    U number = splat(first);
    for (int l = 0; l < kLanes; ++l) number[l] += l;
    for (int64_t i = 0; i < n; i += kLanes) {
        U h = number * 0x9E3779B1u + low;
        h = ((h ^ (h >> 16)) * 0x21F0AAADu) ^ high;
        h = (h ^ (h >> 15)) * 0x735A2D97u;
        *(U*)(random + i) = h ^ (h >> 15);
        number += (uint32_t)kLanes;
    }
}

// What saturation makes of q, rounded in the grid that goes on for one value. Counts finite elements that overflowed.
int64_t saturate_tile(const float* y, float* q, int64_t n, const Grid& g, int rounding, int saturation) {
    F max = splat(g.max_finite);
    U inf = splat(kExponent);
    I overflows{};
    bool keep_inf = g.has_inf && saturation != kFinite;
    bool clamps = saturation != kNone || !(g.has_inf || g.has_nan);
    F beyond = g.has_inf ? f(inf) : f(splat(0x7fc00000u));
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = load(y + i), r = load(q + i);
        U sign = u(v) & kSign, size = u(v) & kMagnitude;
        F magnitude = f(u(r) & kMagnitude);
        I over = (I)(magnitude > max), finite = (I)(size < inf), infinite = (I)(size == inf);
        I negative = (I)(sign != 0u);
        if (!g.is_signed) over |= negative & ((I)(magnitude > 0.0f) | infinite);
        overflows += over & finite;  // each counts -1
        F limit = max;
        if (!g.is_signed) limit = select(negative, F{}, max);
        F result;
        if (clamps) result = limit;
        else {
            I inwards = rounding == kTowardZero ? finite
                        : rounding == kUp ? finite & negative
                        : rounding == kDown ? finite & ~negative : I{};
            F outside = beyond;
            if (!g.is_signed) outside = select(negative, f(splat(0x7fc00000u)), outside);
            result = select(inwards, limit, outside);
        }
        if (keep_inf && clamps) result = select(g.is_signed ? infinite : infinite & ~negative, f(inf), result);
        magnitude = select(over, result, magnitude);
        if (!g.is_signed) sign = select((I)(magnitude != magnitude), sign, U{});
        else if (!g.has_negative_zero) sign = select((I)(magnitude == 0.0f), U{}, sign);
        store(q + i, f(u(magnitude) | sign));
    }
    int64_t count = 0;
    for (int l = 0; l < kLanes; ++l) count -= overflows[l];
    return count;
}

// -------------------------------------------------------------------------------------------------------- statistics

struct Sums {
    U max{}, min = splat(0xffffffffu);  // of the magnitude's bits; min of bits - 1, so that zero is the largest
    F signal{}, error{};                // of y^2 and (q - y)^2: in units of the scale

    void add(F x, F y, F q) {
        U size = u(x) & kMagnitude;
        max = largest(max, size);
        min = smallest(min, size - 1u);
        F d = q - y;
        signal = multiply_add(y, y, signal);
        error = multiply_add(d, d, error);
    }
};

struct Counts {
    double field[kFields] = {};

    Counts() { field[7] = INFINITY; }
    void merge(const Counts& other) {
        for (int k = 0; k < kFields; ++k) {
            if (k == 6) field[k] = std::fmax(field[k], other.field[k]);
            else if (k == 7) field[k] = std::fmin(field[k], other.field[k]);
            else field[k] += other.field[k];
        }
    }
};

// The definition, element by element: for tiles with infinities, NaN, or squares that float32 does not hold.
void count_plainly(const float* x, const float* y, const float* q, const float* scale, int64_t n, const Grid& g,
                   Counts& c) {
    for (int64_t i = 0; i < n; ++i) {
        if (std::isnan(x[i])) { c.field[4] += 1; continue; }
        if (std::isinf(x[i])) { c.field[5] += 1; continue; }
        double size = std::fabs((double)x[i]);
        double s = scale[i];
        if (size > 0) {
            c.field[6] = std::fmax(c.field[6], size);
            c.field[7] = std::fmin(c.field[7], size);
        }
        double value = q[i];
        if (!std::isfinite(q[i])) value = !g.is_signed && std::signbit(y[i]) ? 0.0 : std::copysign((double)g.max_finite, (double)y[i]);
        double e = value * s - (double)x[i];
        c.field[8] += size * size;
        c.field[9] += e * e;
    }
}

// Zero results of finite non-zero elements, and subnormal results.
void count_small(const float* x, const float* q, int64_t n, const Grid& g, Counts& c) {
    I vanished{}, subnormal{};
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = load(x + i), r = load(q + i);
        F size = f(u(r) & kMagnitude);
        I zero = (I)(size == 0.0f);
        vanished -= zero & (I)(v != 0.0f) & (I)((u(v) & kMagnitude) < kExponent);
        subnormal -= (I)(size < g.min_normal) & ~zero;
    }
    for (int l = 0; l < kLanes; ++l) { c.field[2] += vanished[l]; c.field[3] += subnormal[l]; }
}

// Whether float32 sums will do for a tile: finite, and squares in range.
struct Range {
    uint32_t max, min;
    explicit Range(const Sums& s) : max(0), min(0xffffffffu) {
        for (int l = 0; l < kLanes; ++l) {
            if (s.max[l] > max) max = s.max[l];
            if (s.min[l] < min) min = s.min[l];
        }
    }
    bool empty() const { return min == 0xffffffffu; }  // zeros only
    float amax() const { return bits_to_float(max); }
    float amin() const { return bits_to_float(min + 1u); }
};

double total(const F& v) {
    double sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += v[l];
    return sum;
}

// ------------------------------------------------------------------------------------------------------------- tiles

struct Work {
    Grid grid;
    const void* x;
    void* q;
    int x_type, q_type;
    int64_t rows, columns;
    // Scales: one of each, or one for each block, [ceil(rows / block_rows), ceil(columns / block_columns)].
    const float *inverse, *scale, *multiplier;
    int64_t block_rows, block_columns;  // 0: one scale
    bool multiplies, exact_scale;
    int rounding, saturation;
    Draw draw;
    const uint32_t* keys;  // low, high of each page of 2^32 element numbers, from that of the first element
    bool counts;
};

struct Tiles {
    alignas(64) float x[kTile + kLanes], y[kTile + kLanes], q[kTile + kLanes], inverse[kTile + kLanes],
        scale[kTile + kLanes], multiplier[kTile + kLanes];
    alignas(64) uint32_t random[kTile + kLanes];
};

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

void load_tile(const Work& w, int64_t at, int64_t n, float* x) {
    int64_t whole = n / kLanes * kLanes;
    if (w.x_type == kFloat32) {
        std::memcpy(x, (const float*)w.x + at, n * 4);
    } else {
        const uint16_t* source = (const uint16_t*)w.x + at;
        for (int64_t i = 0; i < whole; i += kLanes) store(x + i, widen(source + i));
        for (int64_t i = whole; i < n; ++i) x[i] = bits_to_float((uint32_t)source[i] << 16);
    }
    for (int64_t i = n; i < padded(n); ++i) x[i] = 0.0f;
}

void store_tile(const Work& w, int64_t at, int64_t n, float* q) {
    if (w.q_type == kFloat32) {
        std::memcpy((float*)w.q + at, q, n * 4);
        return;
    }
    uint16_t* target = (uint16_t*)w.q + at;
    int64_t whole = n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) narrow(target + i, load(q + i));
    if (whole < n) {
        uint16_t rest[kLanes];
        narrow(rest, load(q + whole));
        std::memcpy(target + whole, rest, (n - whole) * 2);
    }
}

// The scales of n elements of a row from column `column` on.
void spread(const Work& w, const float* scales, int64_t row, int64_t column, int64_t n, float* out) {
    int64_t per_row = (w.columns + w.block_columns - 1) / w.block_columns;
    const float* s = scales + row / w.block_rows * per_row;
    if (w.block_columns == 1) {
        std::memcpy(out, s + column, n * 4);
    } else {
        int64_t i = 0;
        while (i < n) {
            int64_t block = (column + i) / w.block_columns;
            int64_t end = (block + 1) * w.block_columns - column;
            if (end > n) end = n;
            float value = s[block];
            for (; i < end; ++i) out[i] = value;
        }
    }
    for (int64_t i = n; i < padded(n); ++i) out[i] = 1.0f;
}

void cast_tile(const Work& w, RoundTile round, int64_t row, int64_t column, int64_t n, Tiles& t, Counts& c) {
    const Grid& g = w.grid;
    int64_t at = row * w.columns + column, m = padded(n);
    load_tile(w, at, n, t.x);
    if (w.block_columns) {
        spread(w, w.inverse, row, column, n, t.inverse);
        for (int64_t i = 0; i < m; i += kLanes) store(t.y + i, load(t.x + i) * load(t.inverse + i));
    } else {
        F inverse = splat(*w.inverse);
        for (int64_t i = 0; i < m; i += kLanes) store(t.y + i, load(t.x + i) * inverse);
    }
    if (w.rounding == kStochastic) {
        int64_t number = w.draw.first + row * w.draw.columns + column, first_page = w.draw.first >> 32;
        int64_t done = 0;
        while (done < n) {  // a page ends inside a tile once in 2^32 elements
            int64_t page = (number + done) >> 32, until = ((page + 1) << 32) - number;
            if (until > n) until = n;
            const uint32_t* key = w.keys + 2 * (page - first_page);
            draw_tile((uint32_t)(number + done), key[0], key[1], t.random + done, padded(until - done));
            done = until;
        }
    }
    round(t.y, t.random, w.draw.bits, t.q, m, g);
    // Padding is zero and stays zero.
    c.field[1] += saturate_tile(t.y, t.q, m, g, w.rounding, w.saturation);
    if (w.counts) {
        if (w.block_columns) spread(w, w.scale, row, column, n, t.scale);
        else for (int64_t i = 0; i < m; ++i) t.scale[i] = *w.scale;
        for (int64_t i = n; i < m; ++i) t.x[i] = t.y[i] = t.q[i] = 0.0f;
        Sums all;
        F signal{}, error{};
        for (int64_t i = 0; i < m; i += kLanes) {
            F x = load(t.x + i), s = load(t.scale + i);
            F d = load(t.q + i) * s - x;
            all.add(x, x, x);
            signal = multiply_add(x, x, signal);
            error = multiply_add(d, d, error);
        }
        Range range(all);
        c.field[0] += n;
        if (!range.empty() || range.max) {
            bool usual = range.max < kExponent && range.amax() < 1e15f && range.amax() > 1e-8f &&
                         (w.exact_scale || g.mantissa_bits <= 7) && w.saturation != kNone;
            if (usual) {
                c.field[6] = std::fmax(c.field[6], (double)range.amax());
                c.field[7] = std::fmin(c.field[7], (double)range.amin());
                c.field[8] += total(signal);
                c.field[9] += total(error);
            } else {
                count_plainly(t.x, t.y, t.q, t.scale, n, g, c);
            }
            count_small(t.x, t.q, m, g, c);
        }
    }
    if (w.multiplies) {
        if (w.block_columns) {
            spread(w, w.multiplier, row, column, n, t.multiplier);
            for (int64_t i = 0; i < m; i += kLanes) store(t.q + i, load(t.q + i) * load(t.multiplier + i));
        } else {
            F multiplier = splat(*w.multiplier);
            for (int64_t i = 0; i < m; i += kLanes) store(t.q + i, load(t.q + i) * multiplier);
        }
    }
    store_tile(w, at, n, t.q);
}

// The case of training in registers: nearest even, magic path, signed, one scale, everything saturates.
template <int x_type, int q_type, bool counts>
void cast_whole_lanes(const Work& w, int64_t at, int64_t n, Sums& sums) {
    const Grid g = w.grid;
    const F inverse = splat(*w.inverse), multiplier = splat(*w.multiplier), max = splat(g.max_finite);
    const U first = splat(float_to_bits(g.first_power));
    const float c = bits_to_float((uint32_t)(127 + 23 - g.mantissa_bits) << 23) * 1.5f;
    const F add = splat(c), subtract = splat(-c);
    const bool negative_zero = g.has_negative_zero;
    Sums local;
    for (int64_t i = at; i < at + n; i += kLanes) {
        F x = x_type == kFloat32 ? load((const float*)w.x + i) : widen((const uint16_t*)w.x + i);
        F y = x * inverse;
        U sign = u(y) & kSign;
        F z = smaller(max, f(u(y) & kMagnitude));
        F p = f(largest(u(z) & kExponent, first));
        F rounded = multiply_add(p, subtract, multiply_add(p, add, z));
        if (!negative_zero) sign = select((I)(rounded == 0.0f), U{}, sign);
        F q = f(u(rounded) | sign);
        if (counts) local.add(x, y, q);
        F value = q * multiplier;
        if (q_type == kFloat32) store((float*)w.q + i, value);
        else narrow((uint16_t*)w.q + i, value);
    }
    if (counts) sums = local;
}

typedef void (*CastLanes)(const Work&, int64_t, int64_t, Sums&);

template <bool counts>
CastLanes cast_lanes_of(int x_type, int q_type) {
    if (x_type == kFloat32) return q_type == kFloat32 ? cast_whole_lanes<0, 0, counts> : cast_whole_lanes<0, 1, counts>;
    return q_type == kFloat32 ? cast_whole_lanes<1, 0, counts> : cast_whole_lanes<1, 1, counts>;
}

void cast_flat(const Work& w, CastLanes lanes, RoundTile round, int64_t at, int64_t n, Tiles& t, Counts& c) {
    const Grid& g = w.grid;
    int64_t whole = n / kLanes * kLanes;
    if (whole < n) cast_tile(w, round, 0, at + whole, n - whole, t, c);
    if (!whole) return;
    Sums sums;
    lanes(w, at, whole, sums);
    if (!w.counts) return;
    c.field[0] += whole;
    Range range(sums);
    if (range.empty() && !range.max) return;
    float scaled = range.amax() * *w.inverse;
    bool usual = range.max < kExponent && scaled < 1e15f && scaled > 1e-8f && (w.exact_scale || g.mantissa_bits <= 7);
    if (usual && scaled <= g.max_finite && range.amin() * *w.inverse >= 2 * std::fmax(g.min_normal, g.min_positive)) {
        double s2 = (double)*w.scale * (double)*w.scale;
        c.field[6] = std::fmax(c.field[6], (double)range.amax());
        c.field[7] = std::fmin(c.field[7], (double)range.amin());
        c.field[8] += total(sums.signal) * s2;
        c.field[9] += total(sums.error) * s2;
        return;
    }
    // Something overflowed, vanished, or is not finite: take the tile again and count.
    load_tile(w, at, whole, t.x);
    F inverse = splat(*w.inverse);
    for (int64_t i = 0; i < whole; i += kLanes) store(t.y + i, load(t.x + i) * inverse);
    round(t.y, nullptr, 0, t.q, whole, g);
    c.field[1] += saturate_tile(t.y, t.q, whole, g, w.rounding, kFinite);
    if (usual) {
        double s2 = (double)*w.scale * (double)*w.scale;
        c.field[6] = std::fmax(c.field[6], (double)range.amax());
        c.field[7] = std::fmin(c.field[7], (double)range.amin());
        c.field[8] += total(sums.signal) * s2;
        c.field[9] += total(sums.error) * s2;
    } else {
        for (int64_t i = 0; i < whole; ++i) t.scale[i] = *w.scale;
        count_plainly(t.x, t.y, t.q, t.scale, whole, g, c);
    }
    count_small(t.x, t.q, whole, g, c);
}

}  // namespace

extern "C" {

// Casts a contiguous matrix. `numbers`: path, mantissa_bits, bias, is_signed, has_inf, has_nan, has_negative_zero.
// `lengths`: first_power, min_normal, min_positive, max_finite, beyond. `statistics`: 10 doubles, or null.
void altgrad_cast(const void* x, int x_type, void* q, int q_type, int64_t rows, int64_t columns, const int32_t* numbers,
                  const float* lengths, const float* inverse, const float* scale, const float* multiplier,
                  int64_t block_rows, int64_t block_columns, int exact_scale, int rounding, int saturation,
                  const uint32_t* keys, int64_t draw_first, int64_t draw_columns, int random_bits, double* statistics,
                  int threads) {
    Work w;
    w.grid = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6],
              lengths[0], lengths[1], lengths[2], lengths[3], lengths[4]};
    w.x = x; w.q = q; w.x_type = x_type; w.q_type = q_type; w.rows = rows; w.columns = columns;
    w.inverse = inverse; w.scale = scale; w.multiplier = multiplier;
    w.block_rows = block_rows; w.block_columns = block_columns;
    w.multiplies = block_columns || *multiplier != 1.0f;
    w.exact_scale = exact_scale; w.rounding = rounding; w.saturation = saturation;
    w.draw = {0, 0, draw_first, draw_columns, random_bits};
    w.keys = keys;
    w.counts = statistics != nullptr;
    const Grid& g = w.grid;
    RoundTile round = g.path == kMagic    ? round_tile_of<kMagic>(rounding)
                      : g.path == kPowers ? round_tile_of<kPowers>(rounding)
                                          : round_tile_of<kBits>(rounding);
    bool saturates = saturation == kFinite || (saturation == kPropagate && !g.has_inf) || !(g.has_inf || g.has_nan);
    bool flat = !block_columns && (rounding != kStochastic || draw_columns == columns);
    bool lean = flat && rounding == kNearestEven && g.path == kMagic && g.is_signed && saturates;
    if (flat) { w.columns = rows * columns; w.rows = 1; w.draw.columns = w.columns; }
    CastLanes lanes = w.counts ? cast_lanes_of<true>(x_type, q_type) : cast_lanes_of<false>(x_type, q_type);

    // A chunk is a stretch of one row, or a number of whole rows.
    int64_t row_chunks = (w.columns + kChunk - 1) / kChunk, rows_a_chunk = row_chunks > 1 ? 1 : kChunk / w.columns;
    if (rows_a_chunk < 1) rows_a_chunk = 1;
    int64_t chunks = row_chunks * ((w.rows + rows_a_chunk - 1) / rows_a_chunk);
    std::vector<Counts> counts(w.counts ? chunks : 0);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        static thread_local Tiles tiles;
        Counts c;
        int64_t first_row = chunk / row_chunks * rows_a_chunk;
        int64_t last_row = first_row + rows_a_chunk < w.rows ? first_row + rows_a_chunk : w.rows;
        int64_t first = chunk % row_chunks * kChunk;
        int64_t last = first + kChunk < w.columns ? first + kChunk : w.columns;
        for (int64_t row = first_row; row < last_row; ++row)
            for (int64_t column = first; column < last; column += kTile) {
                int64_t n = last - column < kTile ? last - column : kTile;
                if (lean) cast_flat(w, lanes, round, column, n, tiles, c);
                else cast_tile(w, round, row, column, n, tiles, c);
            }
        if (w.counts) counts[chunk] = c;
    }
    if (!w.counts) return;
    Counts sum;
    for (const Counts& c : counts) sum.merge(c);
    if (std::isinf(sum.field[7])) sum.field[7] = 0.0;
    for (int k = 0; k < kFields; ++k) statistics[k] = sum.field[k];
}

// The largest magnitude of each block of a contiguous matrix, as float32: NaN where there is one, 0 for nothing.
void altgrad_amax(const void* x, int type, int64_t rows, int64_t columns, int64_t block_rows, int64_t block_columns,
                  float* amax, int threads) {
    int64_t down = (rows + block_rows - 1) / block_rows, across = (columns + block_columns - 1) / block_columns;
    // Narrow blocks: a stretch of columns at a time down the rows; wide ones: block after block.
    bool narrow_blocks = block_columns < kLanes;
    int64_t stretch = narrow_blocks ? kTile : block_columns;
    int64_t stretches = (columns + stretch - 1) / stretch;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1 && rows * columns > 65536)
    for (int64_t d = 0; d < down; ++d)
        for (int64_t s = 0; s < stretches; ++s) {
            int64_t first = s * stretch, last = first + stretch < columns ? first + stretch : columns;
            int64_t bottom = (d + 1) * block_rows < rows ? (d + 1) * block_rows : rows;
            if (narrow_blocks) {
                alignas(64) uint32_t column_max[kTile + kLanes] = {};
                for (int64_t row = d * block_rows; row < bottom; ++row) {
                    int64_t n = last - first, i = 0;
                    if (type == kFloat32) {
                        const float* p = (const float*)x + row * columns + first;
                        for (; i + kLanes <= n; i += kLanes)
                            *(U*)(column_max + i) = largest(*(U*)(column_max + i), u(load(p + i)) & kMagnitude);
                        for (; i < n; ++i) {
                            uint32_t b = float_to_bits(p[i]) & kMagnitude;
                            if (b > column_max[i]) column_max[i] = b;
                        }
                    } else {
                        const uint16_t* p = (const uint16_t*)x + row * columns + first;
                        for (; i + kLanes <= n; i += kLanes)
                            *(U*)(column_max + i) = largest(*(U*)(column_max + i), u(widen(p + i)) & kMagnitude);
                        for (; i < n; ++i) {
                            uint32_t b = ((uint32_t)p[i] << 16) & kMagnitude;
                            if (b > column_max[i]) column_max[i] = b;
                        }
                    }
                }
                for (int64_t c = first; c < last;) {
                    int64_t block = c / block_columns, end = (block + 1) * block_columns;
                    if (end > columns) end = columns;
                    // kTile need not be a multiple of the block: a block that two stretches share is merged below.
                    uint32_t best = 0;
                    int64_t stop = end < last ? end : last;
                    for (; c < stop; ++c)
                        if (column_max[c - first] > best) best = column_max[c - first];
                    float* out = amax + d * across + block;
                    if (block * block_columns >= first) *out = bits_to_float(best);
                    else if (best > float_to_bits(*out)) *out = bits_to_float(best);
                }
            } else {
                U most{};
                uint32_t best = 0;
                for (int64_t row = d * block_rows; row < bottom; ++row) {
                    int64_t n = last - first, i = 0;
                    if (type == kFloat32) {
                        const float* p = (const float*)x + row * columns + first;
                        for (; i + kLanes <= n; i += kLanes) most = largest(most, u(load(p + i)) & kMagnitude);
                        for (; i < n; ++i) {
                            uint32_t b = float_to_bits(p[i]) & kMagnitude;
                            if (b > best) best = b;
                        }
                    } else {
                        const uint16_t* p = (const uint16_t*)x + row * columns + first;
                        for (; i + kLanes <= n; i += kLanes) most = largest(most, u(widen(p + i)) & kMagnitude);
                        for (; i < n; ++i) {
                            uint32_t b = ((uint32_t)p[i] << 16) & kMagnitude;
                            if (b > best) best = b;
                        }
                    }
                }
                for (int l = 0; l < kLanes; ++l)
                    if (most[l] > best) best = most[l];
                amax[d * across + s] = bits_to_float(best);
            }
        }
}

}  // extern "C"
