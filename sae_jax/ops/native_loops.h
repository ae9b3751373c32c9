// Loops over rows of float32 numbers, down columns of numbers to select from, and of random numbers.
//
// Included by native.cc once for each instruction set, inside a namespace of its own.

// The compiler would take wider ones apart, and keep the parts in memory.
typedef float Lanes __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

#define LOAD(from) (*reinterpret_cast<const Lanes*>(from))
#define INT_LANES(from) (*reinterpret_cast<const IntLanes*>(from))
#define STORE(to, lanes) (*reinterpret_cast<Lanes*>(to) = (lanes))

// The sum of `num` rows times their values, of kVectors * kLanes columns, kept in registers.
template <int kVectors, bool kPrefetch>
inline void sum_rows(const float* rows, int64_t stride, const int32_t* index, const float* value,
                     int64_t num, float* sum) {
  Lanes sums[kVectors] = {};
  for (int64_t j = 0; j < num; ++j) {
    if (kPrefetch && j + kRowsAhead < num) {
      const float* later = rows + index[j + kRowsAhead] * stride;
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(later + v * kLanes);
    }
    const float* row = rows + index[j] * stride;
    for (int v = 0; v < kVectors; ++v) sums[v] += value[j] * LOAD(row + v * kLanes);
  }
  for (int v = 0; v < kVectors; ++v) STORE(sum + v * kLanes, sums[v]);
}

// Rows `first` to `last` of the sums, from rows as they lie.
void sums_of_rows(const Entries& entries, Matrix rows, int64_t first, int64_t last, float* sums) {
  constexpr int kVectors = 12;
  for (int64_t i = first; i < last; ++i) {
    const int64_t start = entries.start[i], num = entries.start[i + 1] - start;
    const int32_t* index = entries.index.data() + start;
    const float* value = entries.value.data() + start;
    float* sum = sums + i * rows.width;
    int64_t c = 0;
    for (; c + kVectors * kLanes <= rows.width; c += kVectors * kLanes)
      sum_rows<kVectors, true>(rows.data + c, rows.width, index, value, num, sum + c);
    for (; c + kLanes <= rows.width; c += kLanes)
      sum_rows<1, false>(rows.data + c, rows.width, index, value, num, sum + c);
    for (; c < rows.width; ++c) {
      sum[c] = 0;
      for (int64_t j = 0; j < num; ++j) sum[c] += value[j] * rows.data[index[j] * rows.width + c];
    }
  }
}

// Columns `first` to `last`, at most kPanel, of all sums, from a copy of those columns.
void sums_of_panel(const Entries& entries, Matrix rows, int64_t first, int64_t last, float* panel,
                   float* sums) {
  const int64_t num_columns = last - first;
  for (int64_t i = 0; i < rows.num; ++i) {
    float* copy = panel + i * kPanel;
    std::copy_n(rows.data + i * rows.width + first, num_columns, copy);
    std::fill(copy + num_columns, copy + kPanel, 0.0f);
  }
  float sum[kPanel];
  for (int64_t i = 0; i < entries.num_rows(); ++i) {
    const int64_t start = entries.start[i];
    float* to = sums + i * rows.width + first;
    sum_rows<kPanel / kLanes, false>(panel, kPanel, entries.index.data() + start,
                                     entries.value.data() + start, entries.start[i + 1] - start,
                                     num_columns == kPanel ? to : sum);
    if (num_columns < kPanel) std::copy_n(sum, num_columns, to);
  }
}

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t FourIndices __attribute__((vector_size(16)));

#ifdef __clang__
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, FourIndices{__VA_ARGS__})
#endif

// The sums of the lanes of each of four.
inline Four sums_of_lanes(const Lanes* lanes) {
  Four sums[4] = {};
  for (int r = 0; r < 4; ++r)
    for (int64_t i = 0; i < kLanes / 4; ++i) sums[r] += reinterpret_cast<const Four*>(lanes + r)[i];
  const auto pairs = [](Four a, Four b) {
    return SHUFFLED(a, b, 0, 4, 2, 6) + SHUFFLED(a, b, 1, 5, 3, 7);
  };
  const Four low = pairs(sums[0], sums[1]), high = pairs(sums[2], sums[3]);
  return SHUFFLED(low, high, 0, 1, 4, 5) + SHUFFLED(low, high, 2, 3, 6, 7);
}
#undef SHUFFLED

// Adds to `products` those of x with each of the rows, all of `width` numbers.
inline void add_products(const float* x, const float* rows, int64_t stride, int64_t width,
                         const int32_t* index, int64_t num, float* products) {
  constexpr int kRows = 4;  // They share what is loaded of x, and the adding of lanes.
  for (int64_t j = 0; j < num; j += kRows) {
    const float* row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = rows + index[std::min(j + r, num - 1)] * stride;
    Lanes lanes[kRows] = {};
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes)
      for (int r = 0; r < kRows; ++r) lanes[r] += LOAD(x + c) * LOAD(row[r] + c);
    Four total = sums_of_lanes(lanes);
    for (; c < width; ++c) total += x[c] * Four{row[0][c], row[1][c], row[2][c], row[3][c]};
    for (int r = 0; r < kRows && j + r < num; ++r) products[j + r] += total[r];
  }
}

// Of samples `first` to `last`, the products with rows as they lie.
void products_with_rows(const Entries& entries, const float* x, Matrix rows, int64_t first,
                        int64_t last, float* products) {
  for (int64_t i = first; i < last; ++i) {
    const int64_t start = entries.start[i];
    add_products(x + i * rows.width, rows.data, rows.width, rows.width,
                 entries.index.data() + start, entries.start[i + 1] - start, products + start);
  }
}

// What columns `first` to `last` add to all products, from a copy of those columns.
void products_with_panel(const Entries& entries, const float* x, Matrix rows, int64_t first,
                         int64_t last, float* panel, float* products) {
  const int64_t num_columns = last - first;
  for (int64_t i = 0; i < rows.num; ++i)
    std::copy_n(rows.data + i * rows.width + first, num_columns, panel + i * num_columns);
  for (int64_t i = 0; i < entries.num_rows(); ++i) {
    const int64_t start = entries.start[i];
    add_products(x + i * rows.width + first, panel, num_columns, num_columns,
                 entries.index.data() + start, entries.start[i + 1] - start, products + start);
  }
}

// The largest t with at least k of the numbers, none negative, `>= t`; or, where the search stops
// early, any t with exactly k of them.
inline int32_t kth_largest(const int32_t* numbers, int64_t num, int32_t k) {
  int32_t threshold = 0;
  int64_t found = num;
  for (int bit = 30; bit >= 0 && found != k; --bit) {
    const int32_t candidate = threshold | (int32_t{1} << bit);
    int32_t reached = 0;
    for (int64_t i = 0; i < num; ++i) reached += numbers[i] >= candidate;
    if (reached >= k) threshold = candidate, found = reached;
  }
  return threshold;
}

// Ranks of pre-activations, which are in the order of their magnitudes: of a row of a product, and
// what is added to it. Where only `positive` ones count, others are 0.
inline void ranks_of(const float* row, float bias, int64_t num, bool positive, int32_t* ranks) {
  const float least = positive ? 0.0f : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < num; ++i) {
    const float pre = row[i] + bias;
    const float counted = pre < least ? least : pre;
    // Bits of non-negative floats, read as signed integers, are in the floats' order.
    std::memcpy(ranks + i, &counted, sizeof counted);
    ranks[i] &= std::numeric_limits<int32_t>::max();
  }
}

// A bit for each lane that holds, of a comparison of lanes.
inline uint32_t bits_of(IntLanes comparison) {
  const auto bytes = __builtin_convertvector(comparison, Bytes) & 1;
  uint64_t words[2] = {};
  std::memcpy(words, &bytes, kLanes);
  // Moves the lowest bits of eight bytes beside each other, into the highest byte.
  constexpr uint64_t kGather = 0x0102040810204080;
  return words[0] * kGather >> 56 | words[1] * kGather >> 56 << 8;
}

// Latents that may be among the k largest of a sample, in order.
struct Candidates {
  int32_t *rank, *index;
  int32_t num, num_tied;
};

// For samples `first` to `last`, at most kSamplesAtOnce, the latents of largest magnitude: indices in
// ascending order, and pre-activations. Among equal ones the lower index wins.
//
// Each of the k largest maxima of so many latents is reached by a latent of its own, so that no
// latent below the last of them is among the k largest.
void select_latents(Matrix product, const float* bias, int64_t first, int64_t last, bool positive,
                    int32_t k, int64_t k_max, int32_t* indices, float* values) {
  const int64_t num_latents = product.num, num_samples = last - first;
  int64_t group = 1;
  while (group < kMaxGroup && num_latents >= 2 * group * kMaximaPerLatent * k) group *= 2;
  const int64_t num_groups = parts(num_latents, group);
  std::vector<int32_t> maxima(num_groups * num_samples), of_sample(num_groups);
  int32_t ranks[kSamplesAtOnce] = {}, least[kSamplesAtOnce];
  // Nothing reaches it, in place of samples that are not there.
  std::fill_n(least, kSamplesAtOnce, std::numeric_limits<int32_t>::max());
  for (int64_t i = 0; i < num_latents; ++i) {
    ranks_of(product.data + i * product.width + first, bias[i], num_samples, positive, ranks);
    int32_t* most = maxima.data() + i / group * num_samples;
    for (int64_t j = 0; j < num_samples; ++j) most[j] = std::max(most[j], ranks[j]);
  }
  for (int64_t j = 0; j < num_samples; ++j) {
    for (int64_t i = 0; i < num_groups; ++i) of_sample[i] = maxima[i * num_samples + j];
    least[j] = kth_largest(of_sample.data(), num_groups, k);
  }
  // Fewer than k maxima are larger than the least, and of latents that equal it the first k will do.
  const int64_t most_candidates = k * group + k + 1;
  std::vector<int32_t> rank(most_candidates * num_samples), index(rank.size());
  Candidates candidates[kSamplesAtOnce];
  for (int64_t j = 0; j < num_samples; ++j)
    candidates[j] = {rank.data() + j * most_candidates, index.data() + j * most_candidates, 0, 0};
  for (int64_t i = 0; i < num_latents; ++i) {
    ranks_of(product.data + i * product.width + first, bias[i], num_samples, positive, ranks);
    for (int64_t start = 0; start < num_samples; start += kLanes) {
      const auto reached = INT_LANES(ranks + start) >= INT_LANES(least + start);
      for (uint32_t bits = bits_of(reached); bits; bits &= bits - 1) {
        const int64_t j = start + __builtin_ctz(bits);
        Candidates& of = candidates[j];
        const bool is_tied = ranks[j] == least[j];
        of.rank[of.num] = ranks[j];
        of.index[of.num] = static_cast<int32_t>(i);
        of.num += (ranks[j] > least[j]) | (is_tied & (of.num_tied < k));
        of.num_tied += is_tied;
      }
    }
  }
  for (int64_t j = 0; j < num_samples; ++j) {
    const Candidates& of = candidates[j];
    const int32_t threshold = std::max(kth_largest(of.rank, of.num, k), least[j]);
    int32_t above = 0;
    for (int32_t i = 0; i < of.num; ++i) above += of.rank[i] > threshold;
    // Where the search ended early, all k are those that reach the threshold.
    int32_t allowed = k - above;
    int32_t* to = indices + (first + j) * k_max;
    float* value = values + (first + j) * k_max;
    for (int32_t i = 0; i < of.num; ++i) {
      const bool is_tied = of.rank[i] == threshold;
      if (of.rank[i] < threshold || (is_tied && allowed-- <= 0)) continue;
      *to++ = of.index[i];
      *value++ = product.data[of.index[i] * product.width + first + j] + bias[of.index[i]];
    }
    std::fill(to, indices + (first + j + 1) * k_max, static_cast<int32_t>(num_latents));
    std::fill(value, values + (first + j + 1) * k_max, 0.0f);
  }
}

// One step of Adam on numbers `first` to `last`, which are read and written once.
void step_of_adam(const AdamNumbers& a, const float* gradient, int64_t first, int64_t last,
                  float* params, float* means, float* squares) {
  for (int64_t i = first; i < last; ++i) {
    const float g = gradient[i];
    const float mean = a.mean_decay * means[i] + a.mean_share * g;
    const float square = a.square_decay * squares[i] + a.square_share * (g * g);
    means[i] = mean;
    squares[i] = square;
    params[i] -= a.rate * (mean * a.mean_scale) / (std::sqrt(square * a.square_scale) + a.epsilon);
  }
}

// The words of Threefry-2x32 for consecutive counts below 2^32, as `use` takes them: with the place
// of the count and both words.
template <typename Use>
inline void threefry(const uint32_t* key, uint32_t count, int64_t num, const Use& use) {
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  for (int64_t i = 0; i < num; ++i) {
    uint32_t a = keys[0], b = count + static_cast<uint32_t>(i) + keys[1];
    for (uint32_t round = 0; round < 5; ++round) {
      for (int rotation : kRotations[round % 2]) {
        a += b;
        b = a ^ (b << rotation | b >> (32 - rotation));
      }
      a += keys[(round + 1) % 3];
      b += keys[(round + 2) % 3] + round + 1;
    }
    use(i, a, b);
  }
}

void threefry_pairs(const uint32_t* key, uint32_t count, int64_t num, uint32_t* pairs) {
  threefry(key, count, num, [=](int64_t i, uint32_t a, uint32_t b) {
    pairs[2 * i] = a;
    pairs[2 * i + 1] = b;
  });
}

void threefry_bits(const uint32_t* key, int64_t num, uint32_t* bits) {
  threefry(key, 0, num, [=](int64_t i, uint32_t a, uint32_t b) { bits[i] = a ^ b; });
}

#undef LOAD
#undef INT_LANES
#undef STORE
