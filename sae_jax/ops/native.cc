// The loops of native_loops.h, and the products of native_tiles.h, as functions that XLA calls on a
// CPU.
//
// Interface: XLA's foreign functions, https://docs.jax.dev/en/latest/ffi.html (2025). native.py says
// what each function computes. Where XLA divides operations among threads, so are these; where each
// device has a core of its own, they take that core.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && __GNUC__ >= 11
#define HAS_TILES 1
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;
using Words = ffi::Buffer<ffi::U32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;
using IntegersOut = ffi::ResultBuffer<ffi::S32>;
using WordsOut = ffi::ResultBuffer<ffi::U32>;

// Columns of a panel: a copy of so many columns of all rows lies densely in the cache, where rows
// that are a power of two apart evict each other.
constexpr int64_t kPanel = 64;
// A panel for products, whose sums are added up once for each, has as many columns as fit in so many
// bytes, which a usual second-level cache holds.
constexpr int64_t kProductPanelBytes = 1 << 20;
// Floats of a line of the cache, and its bytes.
constexpr int64_t kLine = 16, kLineBytes = 64;
// A copy pays where each row is read so often.
constexpr int64_t kPanelMinReads = 4;
// Rows read in place are asked for so many rows ahead.
constexpr int64_t kRowsAhead = 4;
// Samples for which a thread selects latents at a time: of so many a row of all is long enough.
constexpr int64_t kSamplesAtOnce = 128;
// Of at most so many latents the largest is searched first, and so many maxima for each that is kept.
constexpr int64_t kMaxGroup = 16, kMaximaPerLatent = 2;
// Parameters that a thread updates at a time.
constexpr int64_t kAdamBlock = 1 << 16;
// What a product on tiles adds up at a time of each row and column at most, so that it stays in the
// cache.
constexpr int64_t kProductDepth = 640;
// Into how many parts rows are divided among threads.
constexpr int64_t kParts = 64;

struct Matrix {
  const float* data;
  int64_t num, width;
};

// Rows of a sparse matrix: entries start[i] to start[i + 1] are those of row i.
struct Entries {
  std::vector<int64_t> start;
  std::vector<int32_t> index;
  std::vector<float> value;

  int64_t num_rows() const { return static_cast<int64_t>(start.size()) - 1; }
  int64_t num() const { return start.back(); }
};

struct AdamNumbers {
  float mean_decay, mean_share, square_decay, square_share, epsilon, rate, mean_scale, square_scale;
};

// How many parts of a size at most it takes to hold so many.
int64_t parts(int64_t num, int64_t size) { return (num + size - 1) / size; }

// The loops for each instruction set, with as many numbers as an instruction of it takes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_LEVELS 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi,bmi2")
namespace v4 {
constexpr int64_t kLanes = 16;
#include "native_loops.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
namespace v3 {
constexpr int64_t kLanes = 8;
#include "native_loops.h"
}
#pragma GCC pop_options
#endif
namespace any {
constexpr int64_t kLanes = 4;
#include "native_loops.h"
}

// Calls a loop with the widest instructions that the processor has.
#ifdef HAS_LEVELS
bool has_v4() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}
int level() {
  static const int found = !has_v3() ? 0 : has_v4() ? 4 : 3;
  return found;
}
#define WIDEST(loop, ...)                 \
  (level() == 4   ? v4::loop(__VA_ARGS__) \
   : level() == 3 ? v3::loop(__VA_ARGS__) \
                  : any::loop(__VA_ARGS__))
#else
#define WIDEST(loop, ...) any::loop(__VA_ARGS__)
#endif

// Calls `work` with 0 to num - 1, on XLA's threads where it has any for this operation.
//
// The caller takes part, and waits for nothing but work that others have begun, so that it ends even
// where all threads wait like it.
template <typename Work>
void divide(ffi::ThreadPool& pool, int64_t num, const Work& work) {
  const int64_t num_threads = std::min(pool.num_threads(), num);
  if (num_threads < 2) {
    for (int64_t i = 0; i < num; ++i) work(i);
    return;
  }
  struct Progress {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable changed;
  };
  // A thread that comes late finds nothing left to do, maybe after this function has returned.
  auto progress = std::make_shared<Progress>();
  auto take_part = [progress, num, &work] {
    int64_t done = 0;
    for (int64_t i; (i = progress->next++) < num; ++done) work(i);
    std::lock_guard<std::mutex> lock(progress->mutex);
    progress->done += done;
    if (progress->done == num) progress->changed.notify_one();
  };
  for (int64_t i = 1; i < num_threads; ++i) pool.Schedule(decltype(take_part)(take_part));
  take_part();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->changed.wait(lock, [&] { return progress->done == num; });
}

// `divide` of rows, some at a time: calls `work` with the first and the last of them.
template <typename Work>
void divide_rows(ffi::ThreadPool& pool, int64_t num, const Work& work) {
  const int64_t step = std::max<int64_t>(num / kParts, 1);
  divide(pool, (num + step - 1) / step,
         [&](int64_t i) { work(i * step, std::min((i + 1) * step, num)); });
}

// Names of scratch that one thread may hold at a time.
struct Own;
struct Others;

// Bytes of a thread that begin a line of the cache.
template <typename Name>
char* aligned_scratch(int64_t num) {
  thread_local std::vector<char> scratch;
  scratch.resize(num + kLineBytes);
  const auto address = reinterpret_cast<uintptr_t>(scratch.data());
  return reinterpret_cast<char*>((address + kLineBytes - 1) / kLineBytes * kLineBytes);
}

float* aligned_floats(int64_t num) {
  return reinterpret_cast<float*>(
      aligned_scratch<Own>(num * static_cast<int64_t>(sizeof(float))));
}

bool is_latent(int32_t index, int64_t num_latents) { return 0 <= index && index < num_latents; }

// For each sample the latents that it selects; values are 0 where there are none.
Entries by_sample(const Integers& indices, const float* values, int64_t num_latents) {
  const int64_t num_samples = indices.dimensions()[0], k = indices.dimensions()[1];
  const int32_t* index = indices.typed_data();
  Entries entries{{0}, {}, {}};
  entries.index.reserve(num_samples * k);
  entries.value.reserve(num_samples * k);
  for (int64_t i = 0; i < num_samples * k; ++i) {
    if (is_latent(index[i], num_latents)) {
      entries.index.push_back(index[i]);
      entries.value.push_back(values ? values[i] : 0.0f);
    }
    if ((i + 1) % k == 0) entries.start.push_back(static_cast<int64_t>(entries.index.size()));
  }
  return entries;
}

// For each latent the samples that select it, in order.
Entries by_latent(const Integers& indices, const float* values, int64_t num_latents) {
  const int64_t num_samples = indices.dimensions()[0], k = indices.dimensions()[1];
  const int32_t* index = indices.typed_data();
  Entries entries{std::vector<int64_t>(num_latents + 1), {}, {}};
  for (int64_t i = 0; i < num_samples * k; ++i)
    if (is_latent(index[i], num_latents)) ++entries.start[index[i] + 1];
  for (int64_t i = 0; i < num_latents; ++i) entries.start[i + 1] += entries.start[i];
  entries.index.resize(entries.num());
  entries.value.resize(entries.num());
  std::vector<int64_t> next(entries.start.begin(), entries.start.end() - 1);
  for (int64_t i = 0; i < num_samples * k; ++i) {
    if (!is_latent(index[i], num_latents)) continue;
    const int64_t to = next[index[i]]++;
    entries.index[to] = static_cast<int32_t>(i / k);
    entries.value[to] = values[i];
  }
  return entries;
}

bool pays_to_copy(const Entries& entries, int64_t num_rows) {
  return entries.num() >= kPanelMinReads * std::max(num_rows, entries.num_rows());
}

void sum(ffi::ThreadPool& pool, const Entries& entries, Matrix rows, float* sums) {
  if (!pays_to_copy(entries, rows.num)) {
    divide_rows(pool, entries.num_rows(), [&](int64_t first, int64_t last) {
      WIDEST(sums_of_rows, entries, rows, first, last, sums);
    });
    return;
  }
  divide(pool, parts(rows.width, kPanel), [&](int64_t i) {
    const int64_t first = i * kPanel, last = std::min(first + kPanel, rows.width);
    float* panel = aligned_floats(rows.num * kPanel);
    WIDEST(sums_of_panel, entries, rows, first, last, panel, sums);
  });
}

// The products of samples with their entries' rows, in the order of the entries.
std::vector<float> multiply(ffi::ThreadPool& pool, const Entries& entries, const float* x,
                            Matrix rows) {
  if (!pays_to_copy(entries, rows.num)) {
    std::vector<float> products(entries.num());
    divide_rows(pool, entries.num_rows(), [&](int64_t first, int64_t last) {
      WIDEST(products_with_rows, entries, x, rows, first, last, products.data());
    });
    return products;
  }
  const int64_t most = kProductPanelBytes / static_cast<int64_t>(sizeof(float)) / rows.num;
  int64_t num_panels = parts(rows.width, std::max(most, kPanel));
  const int64_t panel_width = parts(parts(rows.width, num_panels), kLine) * kLine;
  num_panels = parts(rows.width, panel_width);
  std::vector<std::vector<float>> products(num_panels, std::vector<float>(entries.num()));
  divide(pool, num_panels, [&](int64_t i) {
    const int64_t first = i * panel_width, last = std::min(first + panel_width, rows.width);
    float* panel = aligned_floats(rows.num * (last - first));
    WIDEST(products_with_panel, entries, x, rows, first, last, panel, products[i].data());
  });
  for (int64_t i = 1; i < num_panels; ++i)
    for (int64_t j = 0; j < entries.num(); ++j) products[0][j] += products[i][j];
  return std::move(products[0]);
}

Matrix matrix(const Floats& buffer) {
  return {buffer.typed_data(), buffer.dimensions()[0], buffer.dimensions()[1]};
}

#ifdef HAS_TILES
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi,bmi2")
#pragma GCC target("amx-tile,amx-bf16")
#include "native_tiles.h"
#pragma GCC pop_options

// Whether the processor has tiles, which Linux lets a process use that asks.
bool has_tiles() {
  static const bool found = [] {
    unsigned a, b, c, d;
    constexpr unsigned kTilesOfBfloat16 = 1u << 22 | 1u << 24, kBfloat16 = 1u << 5;
    if (level() < 4 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((d & kTilesOfBfloat16) != kTilesOfBfloat16) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kBfloat16)) return false;
    constexpr long kAskForFeature = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kAskForFeature, kTileData) == 0;
  }();
  return found;
}

template <int kParts>
void multiply(ffi::ThreadPool& pool, const Operand& left, const Operand& right, float* result) {
  // Bands of the larger operand are packed one by one, those of the other all at once.
  const bool is_right = right.num > left.num;
  const Operand &larger = is_right ? right : left, &other = is_right ? left : right;
  const int64_t num_others = parts(other.num, kBand);
  const int64_t equal = parts(left.depth, parts(left.depth, kProductDepth));
  const int64_t depth = parts(equal, kTileDepth) * kTileDepth;
  for (int64_t first = 0; first < left.depth; first += depth) {
    const int64_t last = std::min(first + depth, left.depth);
    const int64_t bytes = band_bytes<kParts>(last - first);
    char* others = aligned_scratch<Others>(num_others * bytes);
    divide(pool, num_others, [&](int64_t i) {
      pack_band<kParts>(other, !is_right, i * kBand, first, last, others + i * bytes);
    });
    divide(pool, parts(larger.num, kBand), [&](int64_t i) {
      multiply_band<kParts>(larger, is_right, i, first, last, others, num_others,
                            aligned_scratch<Own>(bytes), result, left.num, right.num);
    });
  }
}

ffi::Error matmul(ffi::ThreadPool pool, Floats left, Floats right, FloatsOut result,
                  int64_t num_parts, bool left_transposed, bool right_transposed) {
  if (!has_tiles())
    return ffi::Error(ffi::ErrorCode::kFailedPrecondition,
                      "this program was compiled for a processor with AMX; this one has none");
  const auto l = left.dimensions(), r = right.dimensions();
  const Operand rows{left.typed_data(), l[left_transposed], l[!left_transposed], left_transposed};
  const Operand columns{right.typed_data(), r[!right_transposed], r[right_transposed],
                        !right_transposed};
  if (rows.depth == 0) {
    std::fill_n(result->typed_data(), result->element_count(), 0.0f);
    return ffi::Error::Success();
  }
  const auto product = num_parts == 1 ? multiply<1> : num_parts == 2 ? multiply<2> : multiply<3>;
  product(pool, rows, columns, result->typed_data());
  return ffi::Error::Success();
}
#else
bool has_tiles() { return false; }

ffi::Error matmul(ffi::ThreadPool, Floats, Floats, FloatsOut, int64_t, bool, bool) {
  return ffi::Error(ffi::ErrorCode::kUnimplemented, "the compiler knew no AMX");
}
#endif

ffi::Error largest_latents(ffi::ThreadPool pool, Floats product, Floats bias, Integers k,
                   IntegersOut indices, FloatsOut values, bool positive) {
  const int64_t num_samples = product.dimensions()[1];
  const int64_t k_max = indices->dimensions()[1];
  const int32_t num_selected = std::clamp(k.typed_data()[0], 0, static_cast<int32_t>(k_max));
  divide(pool, parts(num_samples, kSamplesAtOnce), [&](int64_t i) {
    const int64_t first = i * kSamplesAtOnce, last = std::min(first + kSamplesAtOnce, num_samples);
    WIDEST(select_latents, matrix(product), bias.typed_data(), first, last, positive, num_selected,
           k_max, indices->typed_data(), values->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error sum_of_rows(ffi::ThreadPool pool, Floats values, Integers indices, Floats rows,
                       FloatsOut sums) {
  const Entries entries = by_sample(indices, values.typed_data(), rows.dimensions()[0]);
  sum(pool, entries, matrix(rows), sums->typed_data());
  return ffi::Error::Success();
}

ffi::Error products(ffi::ThreadPool pool, Floats x, Integers indices, Floats rows,
                    FloatsOut products) {
  const int64_t num_latents = rows.dimensions()[0];
  const Entries entries = by_sample(indices, nullptr, num_latents);
  const std::vector<float> found = multiply(pool, entries, x.typed_data(), matrix(rows));
  const int32_t* index = indices.typed_data();
  for (int64_t i = 0, next = 0; i < static_cast<int64_t>(indices.element_count()); ++i)
    products->typed_data()[i] = is_latent(index[i], num_latents) ? found[next++] : 0.0f;
  return ffi::Error::Success();
}

ffi::Error sums_over_samples(ffi::ThreadPool pool, Floats values, Integers indices, Floats x,
                             FloatsOut sums, FloatsOut totals) {
  const Entries entries =
      by_latent(indices, values.typed_data(), static_cast<int64_t>(totals->element_count()));
  sum(pool, entries, matrix(x), sums->typed_data());
  for (int64_t i = 0; i < entries.num_rows(); ++i) {
    float total = 0;
    for (int64_t j = entries.start[i]; j < entries.start[i + 1]; ++j) total += entries.value[j];
    totals->typed_data()[i] = total;
  }
  return ffi::Error::Success();
}

// Arguments: the numbers, then gradients, parameters, means and squares of all arrays.
ffi::Error adam(ffi::ThreadPool pool, Floats numbers, ffi::RemainingArgs arguments,
                ffi::RemainingRets results) {
  const float* n = numbers.typed_data();
  const AdamNumbers a{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]};
  const size_t num_arrays = results.size() / 3;
  struct Block {
    const float* gradient;
    float* state[3];
    int64_t first, last;
  };
  std::vector<Block> blocks;
  for (size_t i = 0; i < num_arrays; ++i) {
    const auto gradient = arguments.get<Floats>(i);
    if (!gradient) return gradient.error();
    const auto num = static_cast<int64_t>(gradient->element_count());
    Block block{gradient->typed_data(), {}, 0, 0};
    for (size_t part = 0; part < 3; ++part) {
      const auto from = arguments.get<Floats>((part + 1) * num_arrays + i);
      auto to = results.get<Floats>(part * num_arrays + i);
      if (!from) return from.error();
      if (!to) return to.error();
      block.state[part] = (*to)->typed_data();
      // Where XLA did not give both the same memory.
      if (from->typed_data() != (*to)->typed_data())
        std::copy_n(from->typed_data(), num, (*to)->typed_data());
    }
    for (block.first = 0; block.first < num; block.first = block.last) {
      block.last = std::min(block.first + kAdamBlock, num);
      blocks.push_back(block);
    }
  }
  divide(pool, static_cast<int64_t>(blocks.size()), [&](int64_t i) {
    const Block& b = blocks[i];
    WIDEST(step_of_adam, a, b.gradient, b.first, b.last, b.state[0], b.state[1], b.state[2]);
  });
  return ffi::Error::Success();
}

// For each key the pairs of as many counts as the result has place for.
ffi::Error threefry_pairs(ffi::ThreadPool pool, Words keys, Words first_counts, WordsOut pairs) {
  const auto num_keys = static_cast<int64_t>(first_counts.element_count());
  const int64_t num = static_cast<int64_t>(pairs->element_count()) / 2 / std::max<int64_t>(num_keys, 1);
  divide_rows(pool, num_keys, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      WIDEST(threefry_pairs, keys.typed_data() + 2 * i, first_counts.typed_data()[i], num,
             pairs->typed_data() + 2 * i * num);
  });
  return ffi::Error::Success();
}

ffi::Error threefry_bits(ffi::ThreadPool pool, Words keys, WordsOut bits) {
  const auto num_keys = static_cast<int64_t>(keys.element_count()) / 2;
  const int64_t num = static_cast<int64_t>(bits->element_count()) / std::max<int64_t>(num_keys, 1);
  divide_rows(pool, num_keys, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      WIDEST(threefry_bits, keys.typed_data() + 2 * i, num, bits->typed_data() + i * num);
  });
  return ffi::Error::Success();
}

ffi::Binding<ffi::ExecutionStage::kExecute, ffi::internal::CtxTag<ffi::ThreadPool>> on_threads() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>();
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" int sae_jax_api_major() { return XLA_FFI_API_MAJOR; }
extern "C" int sae_jax_api_minor() { return XLA_FFI_API_MINOR; }
// A function whose arguments or meaning change gets another name: a library that was not built again
// then has none of that name.
XLA_FFI_DEFINE_HANDLER_SYMBOL(sae_jax_largest_latents, largest_latents,
                              on_threads()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Integers>()
                                  .Ret<Integers>()
                                  .Ret<Floats>()
                                  .Attr<bool>("positive"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    sae_jax_sum_of_rows, sum_of_rows,
    on_threads().Arg<Floats>().Arg<Integers>().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    sae_jax_products, products,
    on_threads().Arg<Floats>().Arg<Integers>().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    sae_jax_sums_over_samples, sums_over_samples,
    on_threads().Arg<Floats>().Arg<Integers>().Arg<Floats>().Ret<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sae_jax_adam, adam,
                              on_threads().Arg<Floats>().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sae_jax_threefry_pairs, threefry_pairs,
                              on_threads().Arg<Words>().Arg<Words>().Ret<Words>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sae_jax_threefry_bits, threefry_bits,
                              on_threads().Arg<Words>().Ret<Words>());
extern "C" int sae_jax_has_tiles() { return has_tiles(); }
XLA_FFI_DEFINE_HANDLER_SYMBOL(sae_jax_matmul, matmul,
                              on_threads()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("num_parts")
                                  .Attr<bool>("left_transposed")
                                  .Attr<bool>("right_transposed"));
#pragma GCC visibility pop
