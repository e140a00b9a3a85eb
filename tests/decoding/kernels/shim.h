// Enough of CUDA on a CPU to run entropy_sample.cu as it is: one CTA at a time, a coroutine for every thread.
//
// A thread runs until it meets others, so nothing is left to chance: `backwards` runs the threads of a CTA last to
// first, and a missing barrier shows. Errors come back as text: lanes of a warp that meet at different operations or
// that left before, a barrier that not all reach, a loop without end. Shared memory is poisoned before every CTA.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static __attribute__((section("cuda_shared")))
extern char __start_cuda_shared[] __attribute__((visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((visibility("hidden")));

struct Index { unsigned x = 0, y = 0, z = 0; };
static Index threadIdx, blockIdx, blockDim, gridDim;

enum Status { READY, AT_WARP, AT_BARRIER, DONE };
struct Thread {
  ucontext_t first;
  jmp_buf later;
  bool begun;
  Status status;
  const char* operation;
  long long posted;
};
static const int STACK = 64 << 10, MOST_THREADS = 1024;
static const long MOST_SWITCHES = 100'000'000;
static Thread threads[MOST_THREADS];
static std::vector<char> stacks;
static long long met[MOST_THREADS];  // what the lanes of each warp posted when they last met
static unsigned current;
static jmp_buf scheduler;
static void (*body)(void*);
static void* body_arguments;

static bool unfiltered = false;  // every vote is unanimous: no branch that a vote guards is ever skipped
static long logarithms = 0;

static void pause_as(Status status) {
  threads[current].status = status;
  if (!_setjmp(threads[current].later)) _longjmp(scheduler, 1);
}

static void thread_main() {
  body(body_arguments);
  threads[current].status = DONE;
  _longjmp(scheduler, 1);
}

// Not inlined: locals of the loop that calls it would be lost in the jumps.
static void __attribute__((noinline)) resume(unsigned t) {
  current = t;
  threadIdx.x = t;
  if (_setjmp(scheduler)) return;
  if (threads[t].begun) _longjmp(threads[t].later, 1);
  threads[t].begun = true;
  setcontext(&threads[t].first);
}

static void run_cta(bool backwards) {
  const unsigned n = blockDim.x;
  if (n % 32 || n > MOST_THREADS) throw std::runtime_error("threads of a CTA: " + std::to_string(n));
  memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
  stacks.resize((size_t)n * STACK);
  for (unsigned t = 0; t < n; ++t) {
    threads[t].begun = false;
    threads[t].status = READY;
    getcontext(&threads[t].first);
    threads[t].first.uc_stack.ss_sp = stacks.data() + (size_t)t * STACK;
    threads[t].first.uc_stack.ss_size = STACK;
    makecontext(&threads[t].first, thread_main, 0);
  }
  auto count = [&](Status status, unsigned from, unsigned to) {
    return std::count_if(threads + from, threads + to, [=](const Thread& t) { return t.status == status; });
  };
  for (long switches = 0;;) {
    for (unsigned i = 0; i < n; ++i) {
      const unsigned t = backwards ? n - 1 - i : i;
      if (threads[t].status == READY) resume(t), ++switches;
    }
    if (count(DONE, 0, n) == n) return;
    if (switches > MOST_SWITCHES) throw std::runtime_error("a loop without end");
    bool released = false;
    for (unsigned w = 0; w < n; w += 32) {
      if (count(AT_WARP, w, w + 32) == 0) continue;
      for (unsigned t = w; t < w + 32; ++t) {
        if (threads[t].status != AT_WARP) throw std::runtime_error("a lane misses where its warp meets");
        if (strcmp(threads[t].operation, threads[w].operation))
          throw std::runtime_error(std::string("lanes at ") + threads[w].operation + " and " + threads[t].operation);
        met[t] = threads[t].posted;
      }
      for (unsigned t = w; t < w + 32; ++t) threads[t].status = READY;
      released = true;
    }
    if (count(AT_BARRIER, 0, n) == n) {
      for (unsigned t = 0; t < n; ++t) threads[t].status = READY;
      released = true;
    }
    if (!released) throw std::runtime_error("a barrier that not every thread reaches");
  }
}

// Runs kernel() as every thread of a grid; the text of the error, empty where there is none.
template <class Kernel> static std::string launch(Index grid, unsigned block, bool backwards, Kernel kernel) {
  gridDim = grid;
  blockDim = {block, 1, 1};
  body = [](void* k) { (*(Kernel*)k)(); };
  body_arguments = &kernel;
  try {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_cta(backwards);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

static const long long* meet(const char* operation, unsigned mask, long long value) {
  threads[current].operation = mask == ~0u ? operation : "a part of a warp";
  threads[current].posted = value;
  pause_as(AT_WARP);
  return met + current / 32 * 32;
}

static void __syncthreads() { pause_as(AT_BARRIER); }

static bool __any_sync(unsigned mask, bool vote) {
  const long long* all = meet("any", mask, vote);
  return unfiltered || std::any_of(all, all + 32, [](long long v) { return v; });
}

static int __reduce_max_sync(unsigned mask, int value) {
  const long long* all = meet("max", mask, value);
  return *std::max_element(all, all + 32);
}

static int __reduce_min_sync(unsigned mask, int value) {
  const long long* all = meet("min", mask, value);
  return *std::min_element(all, all + 32);
}

static float __shfl_xor_sync(unsigned mask, float value, int offset) {
  const long long* all = meet("shuffle", mask, std::bit_cast<int>(value));
  return std::bit_cast<float>((int)all[(current % 32) ^ offset]);
}

static int __float_as_int(float x) { return std::bit_cast<int>(x); }
static float __int_as_float(int x) { return std::bit_cast<float>(x); }
static float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
static float __uint2float_rn(unsigned x) { return (float)x; }
static float __fmul_rn(float x, float y) { return x * y; }

// As low as the CUDA manual lets it be, 2 + 1.173 |x| units in the last place, and no number below the normal ones:
// what could most easily lose a candidate.
static float fast_expf(float x) {
  const float e = expf(x) * (1 - 0x1p-23f * (2 + 1.173f * fminf(fabsf(x), 100.f)));
  return e < 0x1p-126f ? 0 : e;
}
#define __expf fast_expf  // the C library has that name too

static float counted_logf(float x) { return ++logarithms, logf(x); }
#define logf counted_logf
