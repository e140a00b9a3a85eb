// entropy_sample.cu as a shared library of the CPU: compiled with -DK= and -DDTYPE= like the original.
#include "shim.h"

#include <utility>

#include "entropy_sample.cu"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Both kernels on buffers of the caller, one grid after the other; returns the error, or an empty text.
EXPORT const char* run(const void* logits, long long stride, int vocabulary, float inverse_temperature,
                       const long long* seeds, const long long* position, const long long* rows, float* states,
                       float* values, int* tokens, int draws, int blocks, int warps, float* entropy, float* log_z,
                       long long* drawn, float* logprobs, int backwards, int filtered, long* logarithms_taken) {
  static std::string error;
  const DTYPE* x = (const DTYPE*)logits;
  unfiltered = !filtered;
  logarithms = 0;
  error = launch({(unsigned)draws, (unsigned)blocks, 1}, 32 * warps, backwards, [=] {
    sample_block(x, stride, vocabulary, inverse_temperature, seeds, position, rows, states, values, tokens);
  });
  *logarithms_taken = logarithms;
  if (error.empty())
    error = launch({(unsigned)((draws - 1) / warps + 1), 1, 1}, 32 * warps, backwards, [=] {
      merge_blocks(x, stride, inverse_temperature, rows, states, values, tokens, blocks, draws, entropy, log_z, drawn,
                   logprobs);
    });
  return error.c_str();
}

template <class... A, size_t... I> static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*(A*)arguments[I]...);
}

template <class... A>
static std::string driver_launch(void (*kernel)(A...), Index grid, unsigned block, void** arguments) {
  return launch(grid, block, false, [=] { call(kernel, arguments, std::index_sequence_for<A...>()); });
}

// As the driver launches: every argument is read, by its type here, from where a pointer says.
EXPORT const char* launch_kernel(int merge, unsigned x, unsigned y, unsigned block, void** arguments) {
  static std::string error;
  unfiltered = false;
  error = merge ? driver_launch(merge_blocks, {x, y, 1}, block, arguments)
                : driver_launch(sample_block, {x, y, 1}, block, arguments);
  return error.c_str();
}

// The words of tokens 0 to count - 1, by the kernel's own philox.
EXPORT void token_words(unsigned long long seed, unsigned position, int count, unsigned* out) {
  for (int token = 0; token < count; ++token) {
    unsigned words[4] = {(unsigned)(token / GROUP * WARP + token % WARP), position, 0, 0};
    philox(words, (unsigned)seed, (unsigned)(seed >> 32));
    out[token] = words[token % GROUP / WARP];
  }
}

EXPORT void widened(const void* from, int count, float* to) {
  for (int i = 0; i < count; ++i) to[i] = widen(((const DTYPE*)from)[i]);
}
