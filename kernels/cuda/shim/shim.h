// What makes a .cu file plain C++: one block after another, whose threads are fibers of the calling thread.
//
// A fiber runs until it waits: at __syncthreads for all of the block that have not ended, at __syncwarp and shuffles
// for those of its warp. Between two barriers threads run one after the other, in ascending or descending order: a
// kernel that lacks a barrier gives other bytes in the two. A barrier that only some threads reach is an error here; on
// a card it hangs. Not for speed.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <array>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct uint3 {
  unsigned int x, y, z;
};
struct float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned int x, y;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace shim {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr unsigned WARP = 32;

enum class State { Ready, AtBlock, AtWarp, Done };

/// A stack of its own, and where it goes on.
struct Fiber {
  jmp_buf at;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  ucontext_t first;
  bool is_new = true;
};

struct Thread {
  State state = State::Ready;
  Fiber *fiber = nullptr;
  /// What it shows to its warp in a shuffle.
  uint64_t slot = 0;
  /// What it shows to its warp in a product, at every second one, and how many products there were.
  std::array<uint32_t, 6> factors[2];
  unsigned products = 0;
};

/// The launch that runs on this thread of the system.
struct Launch {
  uint3 grid, block, thread, group;
  unsigned storage = 0;
  void (*body)(void **) = nullptr;
  void **args = nullptr;
  unsigned current = 0;
  /// What is wrong with the kernel, where something is.
  const char *wrong = nullptr;
  jmp_buf scheduler;
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber *> free;
};

inline thread_local Launch launch;

/// Goes on at `to` until something comes back to `from`.
__attribute__((noinline)) inline void change(jmp_buf &from, jmp_buf &to) {
  if (_setjmp(from) == 0) _longjmp(to, 1);
}

inline void trampoline() {
  for (;;) {
    Launch &l = launch;
    l.body(l.args);
    Thread &mine = l.threads[l.current];
    mine.state = State::Done;
    l.free.push_back(mine.fiber);
    change(mine.fiber->at, l.scheduler);
  }
}

__attribute__((noinline)) inline void begin(Fiber &fiber) {
  fiber.is_new = false;
  getcontext(&fiber.first);
  fiber.first.uc_stack.ss_sp = fiber.stack.get();
  fiber.first.uc_stack.ss_size = STACK_BYTES;
  fiber.first.uc_link = nullptr;
  makecontext(&fiber.first, trampoline, 0);
  if (_setjmp(launch.scheduler) == 0) setcontext(&fiber.first);
}

inline void resume(Launch &l, unsigned t) {
  Thread &thread = l.threads[t];
  l.current = t;
  l.thread = {t, 0, 0};
  if (thread.fiber == nullptr) {
    if (l.free.empty()) {
      l.fibers.push_back(std::make_unique<Fiber>());
      l.free.push_back(l.fibers.back().get());
    }
    thread.fiber = l.free.back();
    l.free.pop_back();
  }
  if (thread.fiber->is_new) {
    begin(*thread.fiber);
  } else {
    change(l.scheduler, thread.fiber->at);
  }
}

/// The running thread waits until it is made ready again.
inline void wait(State state) {
  Launch &l = launch;
  Thread &mine = l.threads[l.current];
  mine.state = state;
  change(mine.fiber->at, l.scheduler);
}

/// Makes the threads from `first` to `end` ready where all that have not ended wait there.
inline bool release(Launch &l, size_t first, size_t end, State state) {
  bool waits = false;
  for (size_t t = first; t < end; t++) {
    State now = l.threads[t].state;
    if (now != State::Done && now != state) return false;
    waits |= now == state;
  }
  for (size_t t = first; waits && t < end; t++) {
    if (l.threads[t].state == state) l.threads[t].state = State::Ready;
  }
  return waits;
}

inline const char *run_block(Launch &l, bool descending) {
  size_t count = l.threads.size();
  for (Thread &thread : l.threads) thread = Thread();
  for (;;) {
    for (size_t k = 0; k < count; k++) {
      size_t t = descending ? count - 1 - k : k;
      if (l.threads[t].state == State::Ready) resume(l, static_cast<unsigned>(t));
    }
    bool goes_on = release(l, 0, count, State::AtBlock);
    for (size_t first = 0; first < count; first += WARP) {
      size_t end = first + WARP < count ? first + WARP : count;
      goes_on |= release(l, first, end, State::AtWarp);
    }
    if (goes_on) continue;
    for (Thread &thread : l.threads) {
      if (thread.state != State::Done) return "not all threads reach the barrier that others wait at";
    }
    return l.wrong;
  }
}

/// Runs all blocks; what is wrong with the kernel, or nothing.
inline const char *run(void (*body)(void **), const unsigned grid[3], unsigned threads, unsigned storage,
                       bool descending, void **args) {
  Launch &l = launch;
  l.grid = {grid[0], grid[1], grid[2]};
  l.block = {threads, 1, 1};
  l.storage = storage;
  l.body = body;
  l.args = args;
  l.wrong = nullptr;
  l.threads.assign(threads, Thread());
  uint64_t count = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
  for (uint64_t k = 0; k < count; k++) {
    uint64_t b = descending ? count - 1 - k : k;
    l.group = {static_cast<unsigned>(b % grid[0]), static_cast<unsigned>(b / grid[0] % grid[1]),
               static_cast<unsigned>(b / grid[0] / grid[1])};
    if (const char *wrong = run_block(l, descending)) {
      // Fibers that wait for ever are left alone, with their stacks.
      for (auto &fiber : l.fibers) fiber.release();
      l.fibers.clear();
      l.free.clear();
      return wrong;
    }
  }
  return nullptr;
}

/// Calls a kernel with the arguments that these pointers point at, as a driver does.
template <class... Parameters, size_t... I>
inline void call(void (*kernel)(Parameters...), void **args, std::index_sequence<I...>) {
  kernel(*static_cast<Parameters *>(args[I])...);
}

template <class... Parameters> inline void call(void (*kernel)(Parameters...), void **args) {
  call(kernel, args, std::index_sequence_for<Parameters...>());
}

/// A kernel of a file, by its name.
struct Entry {
  const char *name;
  void (*body)(void **);
  unsigned operands;
};

template <class... Parameters> constexpr unsigned count(void (*)(Parameters...)) { return sizeof...(Parameters); }

template <class T> inline T exchanged(T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves one word or two");
  Launch &l = launch;
  memcpy(&l.threads[l.current].slot, &value, sizeof(T));
  wait(State::AtWarp);
  unsigned first = l.current / WARP * WARP;
  T result = value;
  if (from < WARP && first + from < l.threads.size()) memcpy(&result, &l.threads[first + from].slot, sizeof(T));
  wait(State::AtWarp);
  return result;
}

/// The number that half `i` of some words of two bf16 is.
inline float half_of(const uint32_t *words, unsigned i) {
  uint32_t bits = words[i / 2] >> (16 * (i % 2)) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

/// `c += a b` of a warp as `mma.m16n8k16` of bf16 has it, each lane's four words of `a` and two of `b` where PTX says
/// that they are. A product of two bf16 is exact in f32; a sum goes from the first step to the last.
inline void multiply_16(float (&c)[4], const std::array<uint32_t, 6> &factors) {
  Launch &l = launch;
  Thread &mine = l.threads[l.current];
  unsigned first = l.current / WARP * WARP, lane = l.current % WARP, turn = mine.products % 2;
  unsigned number = ++mine.products;
  mine.factors[turn] = factors;
  // One barrier: before a lane shows the next but one, it has waited for all to have read this.
  wait(State::AtWarp);
  for (unsigned t = first; t < first + WARP; t++) {
    if (t >= l.threads.size() || l.threads[t].products < number) l.wrong = "a product lacks lanes of its warp";
  }
  if (l.wrong != nullptr) return;
  const Thread *warp = &l.threads[first];
  unsigned row = lane / 4, column = 2 * (lane % 4);
  for (unsigned k = 0; k < 16; k++) {
    unsigned of = k % 8 / 2, high = k / 8, half = k % 2;
    const uint32_t *rows = warp[4 * row + of].factors[turn].data() + 2 * high;
    float a[2] = {half_of(rows, half), half_of(rows + 1, half)};
    for (unsigned e = 0; e < 4; e++) {
      const uint32_t *b = warp[4 * (column + e % 2) + of].factors[turn].data() + 4 + high;
      c[e] = fmaf(a[e / 2], half_of(b, half), c[e]);
    }
  }
}

} // namespace shim

#define threadIdx shim::launch.thread
#define blockIdx shim::launch.group
#define gridDim shim::launch.grid
#define blockDim shim::launch.block
#define STORAGE shim::launch.storage
#define SHIM_ENTRY(kernel) {#kernel, [](void **args) { shim::call(&kernel, args); }, shim::count(&kernel)}

inline void __syncthreads() { shim::wait(shim::State::AtBlock); }
inline void __syncwarp(unsigned = 0xffffffffu) { shim::wait(shim::State::AtWarp); }

template <class T> inline T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  return shim::exchanged(value, (shim::launch.current % shim::WARP) ^ mask);
}
template <class T> inline T __shfl_down_sync(unsigned, T value, unsigned delta) {
  return shim::exchanged(value, shim::launch.current % shim::WARP + delta);
}
template <class T> inline T __shfl_sync(unsigned, T value, unsigned lane) { return shim::exchanged(value, lane); }

inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Fibers of one thread of the system take turns only at barriers, so a plain change is atomic.
inline unsigned atomicMax(unsigned *at, unsigned value) {
  unsigned old = *at;
  if (value > old) *at = value;
  return old;
}
inline unsigned atomicOr(unsigned *at, unsigned value) {
  unsigned old = *at;
  *at = old | value;
  return old;
}
inline unsigned atomicAdd(unsigned *at, unsigned value) {
  unsigned old = *at;
  *at = old + value;
  return old;
}
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
