/* The selective scan on the CPU: forward, and a backward pass that recomputes the states.
 *
 * Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023). C99 with the vector types of
 * GCC and Clang; no header of torch, only libc to link. Equation numbers (F1) to (B8) are those of contract.py.
 *
 * Channels are contiguous in memory, so a vector contains VL channels of one state, and the forward pass needs no sum
 * across a vector. The work is cut into independent tasks (direction, group of conversations, block of channels);
 * workers take them from a counter. Sums over several tasks (gradients of B, C, A, D, bias) are written as one partial
 * result per task and added afterwards in a fixed order. So results have the same bits for any number of workers and
 * any distribution of the tasks.
 *
 * The file includes itself, once for float and once for double.
 */
#ifndef REAL

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define VECTOR 64   /* bytes of a vector; where the machine has shorter ones, the compiler splits them */
#define BLOCK 128   /* most channels of a task */
#define CHUNK_BYTES 131072 /* of states in a chunk of the backward pass: four such buffers should stay in the cache */

/* Rows with strides: elements between directions and between rows; the last axis is contiguous. */
typedef struct {
    const void *data;
    int64_t direction, row;
} rows_t;

typedef struct {
    int64_t K, N, B, D, S, G;          /* directions, utterances, conversations, channels, states, groups */
    int64_t softplus, groups, blocks;  /* groups of conversations, blocks of channels */
    const int64_t *offsets;            /* (B + 1) */
    const int64_t *group;              /* (groups + 1): conversations of a group */
    const int64_t *block;              /* (blocks, 3): first channel, channels, group of B and C */
    const int64_t *reverse;            /* (K) */
    rows_t u, delta, z, Bs, Cs, grad_out;
    const void *A;          /* (K, S, D) */
    const void *skip;       /* (K, D) or null */
    const void *bias;       /* (K, D) or null */
    const void *initial;    /* (K, B, S, D) or null */
    const void *grad_final; /* (K, B, S, D) or null */
    void *out;              /* (K, N, D) */
    void *final;            /* (K, B, S, D) */
    void *du, *ddelta, *dz; /* (K, N, D); dz or null */
    void *dB, *dC;          /* (K, blocks, N, S) */
    void *dA;               /* (K, groups, S, D) */
    void *dskip, *dbias;    /* (K, groups, D) */
    void *dinitial;         /* (K, B, S, D) or null */
} scan_t;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static int64_t longest_of(const scan_t *a) {
    int64_t most = 0;
    for (int64_t b = 0; b < a->B; b++) {
        int64_t n = a->offsets[b + 1] - a->offsets[b];
        most = n > most ? n : most;
    }
    return most;
}

#define REAL float
#define INTEGER int32_t
#define NAME(x) x##_f32
#define IS_FLOAT 1
#include "selective_scan.c"
#undef REAL
#undef INTEGER
#undef NAME
#undef IS_FLOAT
#define REAL double
#define INTEGER int64_t
#define NAME(x) x##_f64
#define IS_FLOAT 0
#include "selective_scan.c"

#else

#define VL ((int64_t)(VECTOR / sizeof(REAL)))
#define vec NAME(vec)
#define ivec NAME(ivec)
typedef REAL vec __attribute__((vector_size(VECTOR), aligned(VECTOR), may_alias));
typedef INTEGER ivec __attribute__((vector_size(VECTOR), aligned(VECTOR), may_alias));
typedef REAL NAME(half) __attribute__((vector_size(VECTOR / 2), aligned(VECTOR / 2), may_alias));
typedef REAL NAME(quarter) __attribute__((vector_size(VECTOR / 4), aligned(VECTOR / 4), may_alias));

#if IS_FLOAT
#define LN2 0.69314718055994530942f
#define LOG2E 1.4426950408889634074f
#define LN2_HIGH 0.693145751953125f /* few enough bits that its product with a small integer is exact */
#define LN2_LOW 1.42860682030941723212e-6f
#define MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits */
#define MANTISSA 23
#define LOWEST -126.0f
#define HIGHEST 129.0f
#define TWENTY 20.0f
#else
#define LN2 0.69314718055994530942
#define LOG2E 1.4426950408889634074
#define LN2_HIGH 0.693147180369123816490
#define LN2_LOW 1.90821492927058770002e-10
#define MAGIC 6755399441055744.0 /* 1.5 * 2^52 */
#define MANTISSA 52
#define LOWEST -1022.0
#define HIGHEST 1025.0
#define TWENTY 20.0
#endif

/* Vectors */

INLINE vec NAME(splat)(REAL x) { return x - (vec){0}; }

INLINE vec NAME(select)(ivec mask, vec yes, vec no) {
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

/* The first n channels, then zeros. */
INLINE vec NAME(load)(const REAL *from, int64_t n) {
    vec v = {0};
    if (n >= VL)
        memcpy(&v, from, VECTOR);
    else
        memcpy(&v, from, (size_t)n * sizeof(REAL));
    return v;
}

INLINE void NAME(store)(REAL *to, vec v, int64_t n) {
    if (n >= VL)
        memcpy(to, &v, VECTOR);
    else
        memcpy(to, &v, (size_t)n * sizeof(REAL));
}

/* Sum of a vector, always in the same order: a tree of halves. */
INLINE REAL NAME(sum)(const vec *v) {
    const NAME(half) *h = (const NAME(half) *)v;
    NAME(half) a = h[0] + h[1];
    const NAME(quarter) *q = (const NAME(quarter) *)&a;
    NAME(quarter) b = q[0] + q[1];
#if IS_FLOAT
    return (b[0] + b[1]) + (b[2] + b[3]);
#else
    return b[0] + b[1];
#endif
}

/* 2^r for r in [-1/2, 1/2]: 1 + r q(r) with q a minimax polynomial (relative error 1e-8 and 3e-19 before rounding). */
INLINE vec NAME(exp2_fraction)(vec r) {
#if IS_FLOAT
    vec p = 0.00015403512367553546f * r + 0.0013390735477607874f;
    p = (p * r + 0.0096182374949070143f) * r + 0.055503574336426599f;
    p = (p * r + 0.24022649794962265f) * r + 0.69314718792669306f;
#else
    vec p = 2.5678429104123610884e-11 * r + 4.455804851545879953e-10;
    p = (p * r + 7.0549322716041566848e-9) * r + 1.0178057169304502643e-7;
    p = (p * r + 1.3215486721358576058e-6) * r + 0.000015252733841378433742;
    p = (p * r + 0.00015403530393466168344) * r + 0.0013333558146406629814;
    p = (p * r + 0.009618129107628436948) * r + 0.055504108664821626543;
    p = (p * r + 0.24022650695910071286) * r + 0.69314718055994530926;
#endif
    return p * r + (REAL)1;
}

/* p 2^k for an integer k from LOWEST to HIGHEST, from k + MAGIC. The bits of 2^(k-1) are its biased exponent, shifted
 * over the mantissa; the last factor 2 prevents overflow of large results. LOWEST gives 0: no subnormal numbers. */
INLINE vec NAME(scale)(vec p, vec shifted) {
    ivec k = (ivec)shifted - (ivec)NAME(splat)(MAGIC);
    ivec bits = (k + (((INTEGER)1 << (sizeof(REAL) * 8 - MANTISSA - 2)) - 2)) << MANTISSA;
    return p * (vec)bits * (REAL)2;
}

/* NaN stays NaN, because every comparison with it is false. */
INLINE vec NAME(clamp)(vec x) {
#if defined(__AVX512F__)
    /* These return the second operand if one is NaN. */
#if IS_FLOAT
    x = (vec)_mm512_max_ps((__m512)NAME(splat)(LOWEST), (__m512)x);
    return (vec)_mm512_min_ps((__m512)NAME(splat)(HIGHEST), (__m512)x);
#else
    x = (vec)_mm512_max_pd((__m512d)NAME(splat)(LOWEST), (__m512d)x);
    return (vec)_mm512_min_pd((__m512d)NAME(splat)(HIGHEST), (__m512d)x);
#endif
#else
    x = NAME(select)((ivec)(x < LOWEST), NAME(splat)(LOWEST), x);
    return NAME(select)((ivec)(x > HIGHEST), NAME(splat)(HIGHEST), x);
#endif
}

/* 2^x = 2^k 2^(x-k) with k = x rounded. */
INLINE vec NAME(exp2)(vec x) {
    x = NAME(clamp)(x);
    vec shifted = x + MAGIC;
    return NAME(scale)(NAME(exp2_fraction)(x - (shifted - MAGIC)), shifted);
}

/* e^x = 2^k e^r with k = x log2(e) rounded and r = x - k ln 2. ln 2 is split into two parts so that k LN2_HIGH is exact
 * and r keeps its low bits. */
INLINE vec NAME(exp)(vec x) {
    vec scaled = NAME(clamp)(x * LOG2E);
    vec shifted = scaled + MAGIC;
    vec k = shifted - MAGIC;
    /* r from x itself, not from its rounded product; when clamped, any finite value gives 0 or infinity. */
    vec inside = (vec)NAME(select)((ivec)(scaled == x * LOG2E), x, scaled * LN2);
    vec r = (inside - k * LN2_HIGH) - k * LN2_LOW;
    return NAME(scale)(NAME(exp2_fraction)(r * LOG2E), shifted);
}

/* log(1 + w) for w in [0, 1]: 2 artanh(s) with s = w / (2 + w) in [0, 1/3], as 2 s (1 + s^2 q(s^2)), q minimax. */
INLINE vec NAME(log1p)(vec w) {
    vec s = w / (w + (REAL)2);
    vec x = s * s;
#if IS_FLOAT
    vec q = 0.10398292374287453f * x + 0.087311098210662140f;
    q = (q * x + 0.11132475784501613f) * x + 0.14285148118793867f;
    q = (q * x + 0.20000005450320902f) * x + 0.33333333324868316f;
#else
    vec q = 0.076197479608252105159 * x + 0.031645435607817207594;
    q = (q * x + 0.049716741776871312483) * x + 0.052401011237880281967;
    q = (q * x + 0.058840079842514454057) * x + 0.06666587934564295841;
    q = (q * x + 0.076923101474723312644) * x + 0.090909090425145484903;
    q = (q * x + 0.11111111111672751286) * x + 0.14285714285710923714;
    q = (q * x + 0.20000000000000007872) * x + 0.3333333333333333333;
#endif
    vec twice = s + s;
    return twice + twice * (x * q);
}

/* 1 / (1 + e^-x); with w = e^-|x|, which cannot overflow, it is 1 / (1 + w) for x >= 0 and w / (1 + w) for x < 0. */
INLINE vec NAME(sigmoid)(vec x) {
    ivec negative = (ivec)(x < 0);
    vec w = NAME(exp)(NAME(select)(negative, x, -x));
    return NAME(select)(negative, w, NAME(splat)(1)) / (w + (REAL)1);
}

/* (F1): max(x, 0) + log(1 + e^-|x|), derivative sigmoid(x). Above 20 the identity, as in torch, derivative 1. */
INLINE vec NAME(softplus)(vec x, vec *derivative) {
    ivec large = (ivec)(x > TWENTY), negative = (ivec)(x < 0);
    vec w = NAME(exp)(NAME(select)(negative, x, -x));
    vec one = NAME(splat)(1);
    *derivative = NAME(select)(large, one, NAME(select)(negative, w, one) / (w + (REAL)1));
    vec positive = NAME(select)(negative, NAME(splat)(0), x);
    return NAME(select)(large, x, positive + NAME(log1p)(w));
}

/* For tests: which = 0 exp, 1 softplus, 2 its derivative, 3 sigmoid, 4 2^x. */
void NAME(ercfusion_unary)(int64_t which, const REAL *x, REAL *y, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) {
        vec v = NAME(load)(x + i, n - i), d = v, r;
        r = which == 0 ? NAME(exp)(v) : which == 3 ? NAME(sigmoid)(v) : which == 4 ? NAME(exp2)(v) : d;
        if (which == 1 || which == 2) r = NAME(softplus)(v, &d);
        r = which == 2 ? d : r;
        NAME(store)(y + i, r, n - i);
    }
}

/* to[o][i] = sum over p of from[o][p][i], p in order. */
void NAME(ercfusion_reduce)(const REAL *from, REAL *to, int64_t outer, int64_t parts, int64_t inner) {
    for (int64_t o = 0; o < outer; o++, to += inner) {
        memcpy(to, from, (size_t)inner * sizeof(REAL));
        from += inner;
        for (int64_t p = 1; p < parts; p++, from += inner)
            for (int64_t i = 0; i < inner; i++) to[i] += from[i];
    }
}

/* One task */

#define ROW(x, k, r) ((const REAL *)(x).data + (k) * (x).direction + (r) * (x).row)

/* Up to VL channels of one block, with their parameters. */
typedef struct {
    int64_t k, channel, n; /* direction, first channel, channels */
    vec bias, skip;
    const vec *A; /* (S), times log2 e */
} NAME(strip);
#define strip_t NAME(strip)

/* (F1): dt and its slope. */
INLINE vec NAME(step)(const scan_t *a, const strip_t *s, int64_t row, vec *derivative) {
    vec x = NAME(load)(ROW(a->delta, s->k, row) + s->channel, s->n) + s->bias;
    *derivative = NAME(splat)(1);
    return a->softplus ? NAME(softplus)(x, derivative) : x;
}

static void NAME(open)(const scan_t *a, strip_t *s, vec *A, int64_t k, int64_t channel, int64_t n) {
    s->k = k, s->channel = channel, s->n = n, s->A = A;
    s->bias = s->skip = (vec){0};
    if (a->bias) s->bias = NAME(load)((const REAL *)a->bias + k * a->D + channel, n);
    if (a->skip) s->skip = NAME(load)((const REAL *)a->skip + k * a->D + channel, n);
    for (int64_t i = 0; i < a->S; i++)
        A[i] = NAME(load)((const REAL *)a->A + (k * a->S + i) * a->D + channel, n) * LOG2E;
}

/* Copies between (K, B, S, D) and the vectors of a strip. A null array reads as zeros, and is not written. */
static void NAME(get_state)(const scan_t *a, const strip_t *s, const void *from, int64_t b, vec *h) {
    const REAL *x = (const REAL *)from + ((s->k * a->B + b) * a->S) * a->D + s->channel;
    for (int64_t i = 0; i < a->S; i++) h[i] = from ? NAME(load)(x + i * a->D, s->n) : (vec){0};
}

static void NAME(put_state)(const scan_t *a, const strip_t *s, void *to, int64_t b, const vec *h) {
    if (!to) return;
    REAL *x = (REAL *)to + ((s->k * a->B + b) * a->S) * a->D + s->channel;
    for (int64_t i = 0; i < a->S; i++) NAME(store)(x + i * a->D, h[i], s->n);
}

static void NAME(forward_task)(const scan_t *a, int64_t k, int64_t group, const int64_t *block, vec *scratch) {
    const int64_t S = a->S, reverse = a->reverse[k], g = block[2] * S;
    vec *restrict A = scratch, *restrict h = scratch + S;
    for (int64_t c = 0; c < block[1]; c += VL) {
        strip_t s;
        NAME(open)(a, &s, A, k, block[0] + c, block[1] - c < VL ? block[1] - c : VL);
        for (int64_t b = a->group[group]; b < a->group[group + 1]; b++) {
            const int64_t start = a->offsets[b], length = a->offsets[b + 1] - start;
            NAME(get_state)(a, &s, a->initial, b, h);
            for (int64_t t = 0; t < length; t++) {
                const int64_t row = start + (reverse ? length - 1 - t : t);
                vec unused, dt = NAME(step)(a, &s, row, &unused);
                vec u = NAME(load)(ROW(a->u, k, row) + s.channel, s.n), input = dt * u, y = {0};
                const REAL *restrict Bt = ROW(a->Bs, k, row) + g, *restrict Ct = ROW(a->Cs, k, row) + g;
                /* (F2), (F3); A contains A log2(e), so that exp2 gives e^(dt A). */
                for (int64_t i = 0; i < S; i++) {
                    vec next = NAME(exp2)(dt * A[i]) * h[i] + input * Bt[i];
                    h[i] = next;
                    y += next * Ct[i];
                }
                if (a->skip) y += s.skip * u; /* 0 times infinity would be NaN */
                if (a->z.data) { /* (F4) */
                    vec z = NAME(load)(ROW(a->z, k, row) + s.channel, s.n);
                    y *= z * NAME(sigmoid)(z);
                }
                NAME(store)((REAL *)a->out + (k * a->N + row) * a->D + s.channel, y, s.n);
            }
            NAME(put_state)(a, &s, a->final, b, h);
        }
    }
}

/* Steps per chunk of the backward pass. */
static int64_t NAME(chunk)(const scan_t *a, int64_t longest) {
    int64_t steps = CHUNK_BYTES / (a->S * VECTOR);
    steps = steps < 1 ? 1 : steps;
    return longest < steps ? (longest < 1 ? 1 : longest) : steps;
}

/* Gradients of one task. Per conversation: forward through all chunks of steps, storing the state before each (marks).
 * Then per chunk, last first, for every strip: forward again, storing h_{t-1} and a_t of each step, and backward, (B1)
 * to (B8). Strips are inside chunks so that the buffers of one chunk stay in the cache, and so that sumB and sumC
 * collect the sums of (B3) over strips; the sum across a vector follows once per chunk.
 */
static void NAME(backward_task)(
    const scan_t *a, int64_t k, int64_t group, int64_t part, vec *scratch, int64_t longest
) {
    const int64_t S = a->S, reverse = a->reverse[k], *block = a->block + 3 * part, g = block[2] * S;
    const int64_t strips = round_up(block[1], VL) / VL, steps = NAME(chunk)(a, longest);
    vec *A = scratch, *lambda = A + strips * S, *dA = lambda + strips * S, *dskip = dA + strips * S;
    vec *dbias = dskip + strips, *h = dbias + strips;
    vec *before = h + S, *decay = before + steps * S, *sumB = decay + steps * S, *sumC = sumB + steps * S;
    vec *dts = sumC + steps * S, *us = dts + steps, *gys = us + steps, *slopes = gys + steps, *marks = slopes + steps;
    strip_t s[BLOCK / (VECTOR / 8)];
    for (int64_t j = 0; j < strips; j++) {
        int64_t left = block[1] - j * VL;
        NAME(open)(a, s + j, A + j * S, k, block[0] + j * VL, left < VL ? left : VL);
    }
    memset(dA, 0, (size_t)(strips * (S + 2)) * sizeof(vec)); /* dA, dskip and dbias */

    for (int64_t b = a->group[group]; b < a->group[group + 1]; b++) {
        const int64_t start = a->offsets[b], length = a->offsets[b + 1] - start;
        const int64_t chunks = length ? round_up(length, steps) / steps : 0;
        /* The states before every chunk. */
        for (int64_t j = 0; j < strips; j++) {
            NAME(get_state)(a, s + j, a->initial, b, h);
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                memcpy(marks + (chunk * strips + j) * S, h, (size_t)S * sizeof(vec));
                if (chunk == chunks - 1) break;
                for (int64_t t = chunk * steps; t < (chunk + 1) * steps; t++) {
                    const int64_t row = start + (reverse ? length - 1 - t : t);
                    vec unused, dt = NAME(step)(a, s + j, row, &unused);
                    vec input = dt * NAME(load)(ROW(a->u, k, row) + s[j].channel, s[j].n);
                    const REAL *Bt = ROW(a->Bs, k, row) + g;
                    for (int64_t i = 0; i < S; i++) h[i] = NAME(exp2)(dt * s[j].A[i]) * h[i] + input * Bt[i];
                }
            }
            NAME(get_state)(a, s + j, a->grad_final, b, lambda + j * S);
        }
        for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
            const int64_t first = chunk * steps, count = length - first < steps ? length - first : steps;
            memset(sumB, 0, (size_t)(count * S) * sizeof(vec));
            memset(sumC, 0, (size_t)(count * S) * sizeof(vec));
            for (int64_t j = 0; j < strips; j++) {
                const strip_t *at = s + j;
                const vec *restrict Aj = at->A;
                memcpy(h, marks + (chunk * strips + j) * S, (size_t)S * sizeof(vec));
                /* Forward: h_{t-1} (before) and a_t (decay) of every step, and the gradients in h_t only: dC and dz. */
                for (int64_t t = 0; t < count; t++) {
                    const int64_t row = start + (reverse ? length - 1 - first - t : first + t);
                    const REAL *restrict Bt = ROW(a->Bs, k, row) + g, *restrict Ct = ROW(a->Cs, k, row) + g;
                    vec *restrict old_h = before + t * S, *restrict a_t = decay + t * S, *restrict dC = sumC + t * S;
                    vec *restrict state = h;
                    vec dt = NAME(step)(a, at, row, slopes + t);
                    vec u = NAME(load)(ROW(a->u, k, row) + at->channel, at->n), input = dt * u, y = {0};
                    vec gy = NAME(load)(ROW(a->grad_out, k, row) + at->channel, at->n), g_t = gy, z = {0}, sig = {0};
                    if (a->z.data) { /* (B1) */
                        z = NAME(load)(ROW(a->z, k, row) + at->channel, at->n);
                        sig = NAME(sigmoid)(z);
                        gy = g_t * z * sig;
                    }
                    for (int64_t i = 0; i < S; i++) {
                        vec e = NAME(exp2)(dt * Aj[i]), old = state[i], next = e * old + input * Bt[i];
                        old_h[i] = old, a_t[i] = e, state[i] = next;
                        y += next * Ct[i];
                        dC[i] += gy * next; /* (B3) */
                    }
                    if (a->z.data) {
                        if (a->skip) y += at->skip * u;
                        vec dz = g_t * y * sig * ((REAL)1 + z * ((REAL)1 - sig)); /* (B1) */
                        NAME(store)((REAL *)a->dz + (k * a->N + row) * a->D + at->channel, dz, at->n);
                    }
                    dts[t] = dt, us[t] = u, gys[t] = gy;
                }
                /* Backward: carried is a_{t+1} lambda_{t+1}, l is lambda_t. */
                for (int64_t t = count - 1; t >= 0; t--) {
                    const int64_t row = start + (reverse ? length - 1 - first - t : first + t);
                    const REAL *restrict Bt = ROW(a->Bs, k, row) + g, *restrict Ct = ROW(a->Cs, k, row) + g;
                    const vec *restrict old_h = before + t * S, *restrict a_t = decay + t * S;
                    vec *restrict dB = sumB + t * S, *restrict dAj = dA + j * S, *restrict carried = lambda + j * S;
                    const vec dt = dts[t], u = us[t], gy = gys[t], input = dt * u;
                    vec v = {0}, rA = {0};
                    for (int64_t i = 0; i < S; i++) {
                        vec l = gy * Ct[i] + carried[i], al = l * a_t[i], r = al * old_h[i]; /* (B2), (B5) */
                        dB[i] += l * input;                                                   /* (B3) */
                        v += l * Bt[i];                                                       /* (B4) */
                        rA += r * Aj[i];
                        dAj[i] += r * dt; /* (B5) */
                        carried[i] = al;
                    }
                    const vec draw = (rA * LN2 + v * u) * slopes[t]; /* (B6); Aj is A log2(e), hence LN2 */
                    const int64_t place = (k * a->N + row) * a->D + at->channel;
                    NAME(store)((REAL *)a->ddelta + place, draw, at->n);
                    vec du = dt * v; if (a->skip) du += at->skip * gy; /* (B4) */
                    NAME(store)((REAL *)a->du + place, du, at->n);
                    dskip[j] += gy * u; /* (B7) */
                    dbias[j] += draw;
                }
            }
            for (int64_t t = 0; t < count; t++) {
                const int64_t row = start + (reverse ? length - 1 - first - t : first + t);
                REAL *dB = (REAL *)a->dB + ((k * a->blocks + part) * a->N + row) * S;
                REAL *dC = (REAL *)a->dC + ((k * a->blocks + part) * a->N + row) * S;
                for (int64_t i = 0; i < S; i++) {
                    dB[i] = NAME(sum)(sumB + t * S + i);
                    dC[i] = NAME(sum)(sumC + t * S + i);
                }
            }
        }
        /* (B8): after the first step lambda contains a_1 lambda_1. */
        for (int64_t j = 0; j < strips; j++) NAME(put_state)(a, s + j, a->dinitial, b, lambda + j * S);
    }
    /* Partial sums of this group of conversations. */
    for (int64_t j = 0; j < strips; j++) {
        const int64_t at = k * a->groups + group;
        for (int64_t i = 0; i < S; i++)
            NAME(store)((REAL *)a->dA + (at * S + i) * a->D + s[j].channel, dA[j * S + i], s[j].n);
        NAME(store)((REAL *)a->dskip + at * a->D + s[j].channel, dskip[j], s[j].n);
        NAME(store)((REAL *)a->dbias + at * a->D + s[j].channel, dbias[j], s[j].n);
    }
}

/* Workers */

int64_t NAME(ercfusion_scratch)(const scan_t *a, int64_t backward) {
    if (!backward) return VECTOR * (2 * a->S + 1);
    const int64_t strips = BLOCK / VL, longest = longest_of(a), steps = NAME(chunk)(a, longest);
    const int64_t marks = round_up(longest, steps) / steps * strips * a->S;
    return VECTOR * (3 * strips * a->S + 2 * strips + a->S + steps * (4 * a->S + 4) + marks + 1);
}

/* Takes tasks from the counter until none is left. Any number of workers may run it at once. */
void NAME(ercfusion_scan)(const scan_t *a, int64_t backward, int64_t *counter, void *memory) {
    const int64_t tasks = a->K * a->groups * a->blocks, longest = longest_of(a);
    vec *scratch = (vec *)(((uintptr_t)memory + VECTOR - 1) / VECTOR * VECTOR);
    for (;;) {
        const int64_t task = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
        if (task >= tasks) return;
        const int64_t part = task % a->blocks, group = task / a->blocks % a->groups, k = task / (a->blocks * a->groups);
        if (backward)
            NAME(backward_task)(a, k, group, part, scratch, longest);
        else
            NAME(forward_task)(a, k, group, a->block + 3 * part, scratch);
    }
}

#undef VL
#undef vec
#undef ivec
#undef LN2
#undef LOG2E
#undef LN2_HIGH
#undef LN2_LOW
#undef MAGIC
#undef MANTISSA
#undef LOWEST
#undef HIGHEST
#undef TWENTY
#undef ROW
#undef strip_t

#endif
