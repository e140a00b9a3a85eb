// Entropy, ln Z and K Gumbel-top-k tokens of m draws, each draw's logits read once: see reference.entropy_sample.
//
// `sample_block`, grid (draws, vocabulary blocks): each CTA leaves a state (m, s, u) and its K best perturbed logits.
// `merge_blocks`, a warp a draw: merges them. Compiled for one K (1 to 8) and one DTYPE (float32, bfloat16, float16).
// Any grid and any number of warps per CTA up to 32 draw the same tokens: the words depend on seed, position and token.
//
// No header is included, so that NVRTC compiles this alone; the half types are read as their bits for the same reason.

constexpr unsigned ALL = 0xffffffffu;
constexpr int WARP = 32, MAX_WARPS = 32, GROUP = 128;  // GROUP: tokens that a warp's 32 counters of four words serve
constexpr int NONE = 0x7fffffff;                       // after every token, so that it loses every tie
constexpr float FLOOR = -1e4f;  // its exponential is 0: an impossible token adds 0, where -inf * 0 is not a number
#define MINUS_INF __uint_as_float(0xff800000u)

struct float32 { float value; };
struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };

__device__ __forceinline__ float widen(float32 x) { return x.value; }

__device__ __forceinline__ float widen(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ __forceinline__ float widen(float16 x) {
  unsigned magnitude = (x.bits & 0x7fffu) << 13;
  // the product moves the exponent's bias from 15 to 127, exactly, also for numbers below the normal ones
  float value = __uint_as_float(magnitude) * 0x1p112f;
  if (magnitude >= 0x0f800000u) value = __uint_as_float(magnitude | 0x7f800000u);
  return x.bits & 0x8000u ? -value : value;
}

// Philox4x32-10 in place, as rng.philox.
__device__ __forceinline__ void philox(unsigned (&c)[4], unsigned k0, unsigned k1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    unsigned long long p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    c[0] = (unsigned)(p1 >> 32) ^ c[1] ^ k0;
    c[2] = (unsigned)(p0 >> 32) ^ c[3] ^ k1;
    c[1] = (unsigned)p1;
    c[3] = (unsigned)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

__device__ __forceinline__ float uniform(unsigned word) {
  return fminf(__uint2float_rn(word) * 0x1p-32f + 0x1p-33f, 1 - 0x1p-24f);
}

// -ln(-ln(1 - v)), with a series where 1 - v would round v away.
__device__ __forceinline__ float gumbel(float v) {
  float series = v * (1 + v * (1.f / 2 + v * (1.f / 3 + v * (1.f / 4 + v * (1.f / 5 + v * (1.f / 6))))));
  return -logf(v < 0.0625f ? series : -logf(1 - v));
}

// Integers in the order of the floats, for the integer reductions of a warp; its own inverse. Both zeros are one.
__device__ __forceinline__ int flip(int bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

__device__ __forceinline__ float warp_max(float value) {
  return __int_as_float(flip(__reduce_max_sync(ALL, flip(__float_as_int(value + 0.f)))));
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = WARP / 2; offset; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
  return value;
}

// Sum s of e^(x - m) and u of (x - m) e^(x - m) over a set of x whose maximum is m; (-inf, 0, 0) is the empty set.
struct State {
  float m, s, u;  // no constructor: shared memory allows none

  __device__ __forceinline__ static State none() { return {MINUS_INF, 0, 0}; }

  // The same set about a maximum at least as high. Empty sets meet FLOOR instead of -inf - (-inf).
  __device__ __forceinline__ void raise(float top) {
    float d = fmaxf(m - (top == MINUS_INF ? 0.f : top), FLOOR), a = expf(d);
    u = a * (u + d * s);
    s = a * s;
    m = top;
  }

  __device__ __forceinline__ void merge(State other) {
    float top = fmaxf(m, other.m);
    raise(top);
    other.raise(top);
    s += other.s;
    u += other.u;
  }

  __device__ __forceinline__ void merge_warp() {
    raise(warp_max(m));
    s = warp_sum(s);
    u = warp_sum(u);
  }
};

// The K best perturbed logits so far, best first; ties to the lowest token.
struct Best {
  float value[K];
  int token[K];

  __device__ __forceinline__ static Best none() {
    Best best;
#pragma unroll
    for (int j = 0; j < K; ++j) best.value[j] = MINUS_INF, best.token[j] = NONE;
    return best;
  }

  __device__ __forceinline__ void insert(float v, int t) {
#pragma unroll
    for (int j = 0; j < K; ++j) {
      bool before = v > value[j] || (v == value[j] && t < token[j]);
      float v_out = before ? value[j] : v;
      int t_out = before ? token[j] : t;
      value[j] = before ? v : value[j];
      token[j] = before ? t : token[j];
      v = v_out;
      t = t_out;
    }
  }

  // The K best of the warp's lists, in every lane.
  __device__ __forceinline__ void merge_warp() {
    Best all = none();
#pragma unroll
    for (int j = 0; j < K; ++j) {
      all.value[j] = warp_max(value[0]);
      all.token[j] = __reduce_min_sync(ALL, value[0] == all.value[j] ? token[0] : NONE);
      if (token[0] == all.token[j]) {
#pragma unroll
        for (int i = 0; i + 1 < K; ++i) value[i] = value[i + 1], token[i] = token[i + 1];
        value[K - 1] = MINUS_INF;
        token[K - 1] = NONE;
      }
    }
    *this = all;
  }

  // A perturbed logit that at least K of the warp's tokens reach: the K-th of its lanes' best, equal ones taken as one.
  __device__ __forceinline__ float threshold() const {
    float left = value[0], top = MINUS_INF;
#pragma unroll
    for (int j = 0; j < K; ++j) {
      top = warp_max(left);
      if (left == top) left = MINUS_INF;
    }
    return top;
  }
};

// A token beats the threshold t only if its v < e^(x - t), as -ln(1 - v) >= v: then its logarithms are not needed. This
// is e^(m - t), to multiply the e^(x - m) that the entropy needs anyway, widened by more than all roundings on the way:
// those of t, in its last place, and of the exponentials, 1e-5. Beyond e^60 it is infinite, as e^(x - m) may be rounded
// to 0 where the product would still be above the smallest v, 2^-33.
__device__ __forceinline__ float reach(float m, float t) {
  float d = m - t + (1e-4f + 1e-6f * fabsf(t));
  return d <= 60 ? expf(d) : -MINUS_INF;  // of no threshold, t = -inf, and of no number, both -inf: infinite too
}

extern "C" __global__ void __launch_bounds__(1024) sample_block(
    const DTYPE* __restrict__ logits, long long stride, int vocabulary, float inverse_temperature,
    const long long* __restrict__ seeds, const long long* __restrict__ position, const long long* __restrict__ rows,
    float* __restrict__ states, float* __restrict__ values, int* __restrict__ tokens) {
  __shared__ State warp_state[MAX_WARPS];
  __shared__ Best warp_best[MAX_WARPS];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  const long long draw = blockIdx.x, seed = seeds[draw];
  const DTYPE* row = logits + (rows ? rows[draw] : draw) * stride;
  const unsigned at = (unsigned)*position, k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
  const int groups = (vocabulary - 1) / GROUP + 1, step = gridDim.y * warps;
  State state = State::none();
  Best best = Best::none();
  float t = MINUS_INF, reached = -MINUS_INF;  // these two and state.m are the same in all lanes of a warp

  for (int group = blockIdx.y * warps + warp; group < groups; group += step) {
    const int first = group * GROUP + lane;
    float x[4], v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      // a product of its own: contracted with a later subtraction it would round otherwise than the reference
      x[j] = first + j * WARP < vocabulary ? __fmul_rn(widen(row[first + j * WARP]), inverse_temperature) : MINUS_INF;
    }
    unsigned words[4] = {(unsigned)(group * WARP + lane), at, 0, 0};  // purpose 0: rng.TOKENS
    philox(words, k0, k1);
    const float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    if (__any_sync(ALL, top > state.m)) {
      state.raise(warp_max(fmaxf(top, state.m)));
      reached = reach(state.m, t);
    }
    const float shift = state.m == MINUS_INF ? 0.f : state.m;
    bool candidate = false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float d = fmaxf(x[j] - shift, FLOOR), e = __expf(d);
      state.s += e;
      state.u += d * e;
      v[j] = uniform(words[j]);
      candidate |= !(v[j] >= e * reached);  // 0 * inf is not a number, and a candidate
    }
    if (__any_sync(ALL, candidate)) {
#pragma unroll
      for (int j = 0; j < 4; ++j) best.insert(x[j] + gumbel(v[j]), first + j * WARP);
      t = best.threshold();
      reached = reach(state.m, t);
    }
  }

  state.merge_warp();
  best.merge_warp();
  if (lane == 0) warp_state[warp] = state, warp_best[warp] = best;
  __syncthreads();
  if (warp == 0) {
    state = lane < warps ? warp_state[lane] : State::none();
    best = lane < warps ? warp_best[lane] : Best::none();
    state.merge_warp();
    best.merge_warp();
    const long long part = draw * gridDim.y + blockIdx.y;
    if (lane == 0) {
      states[part * 3] = state.m;
      states[part * 3 + 1] = state.s;
      states[part * 3 + 2] = state.u;
#pragma unroll
      for (int j = 0; j < K; ++j) values[part * K + j] = best.value[j], tokens[part * K + j] = best.token[j];
    }
  }
}

extern "C" __global__ void __launch_bounds__(1024) merge_blocks(
    const DTYPE* __restrict__ logits, long long stride, float inverse_temperature, const long long* __restrict__ rows,
    const float* __restrict__ states, const float* __restrict__ values, const int* __restrict__ tokens, int blocks,
    int draws, float* __restrict__ entropy, float* __restrict__ log_z, long long* __restrict__ drawn,
    float* __restrict__ logprobs) {
  const int lane = threadIdx.x % WARP;
  const long long draw = (long long)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (draw >= draws) return;  // whole warps: every lane has the same draw
  State state = State::none();
  Best best = Best::none();
  for (int block = lane; block < blocks; block += WARP) {
    const long long part = draw * blocks + block;
    state.merge({states[part * 3], states[part * 3 + 1], states[part * 3 + 2]});
#pragma unroll
    for (int j = 0; j < K; ++j) best.insert(values[part * K + j], tokens[part * K + j]);
  }
  state.merge_warp();
  best.merge_warp();
  if (lane != 0) return;
  const bool empty = state.m == MINUS_INF;
  const float z = state.m + logf(state.s);
  entropy[draw] = empty ? 0.f : fmaxf(logf(state.s) - state.u / state.s, 0.f);
  log_z[draw] = empty ? MINUS_INF : z;
  const DTYPE* row = logits + (rows ? rows[draw] : draw) * stride;
#pragma unroll
  for (int j = 0; j < K; ++j) {
    const bool found = best.value[j] > MINUS_INF;
    drawn[draw * K + j] = found ? best.token[j] : -1;
    logprobs[draw * K + j] = found ? __fmul_rn(widen(row[best.token[j]]), inverse_temperature) - z : MINUS_INF;
  }
}
