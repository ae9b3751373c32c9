// Products of float32 matrices on tiles of bfloat16 numbers, which some processors multiply as one
// (Intel's Advanced Matrix Extensions, AMX).
//
// Each number is taken apart into one, two or three of bfloat16, of which it is the sum but for what
// the last leaves over: 8, 16 or 24 bits of mantissa, as float32 has. See Henry, Tang and Heinecke
// 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
// Computations", arXiv:1904.06376. What is infinite, or so large that bfloat16 rounds it to that, leaves
// over what is no number; parts below 1e-38 count as zero.
//
// Included by native.cc where the compiler knows such tiles. A tile has 16 rows of 64 bytes: 32
// numbers of a row of the left operand, or two each of 16 columns of the right one.

constexpr int64_t kTile = 16;
constexpr int64_t kTileDepth = 32;
constexpr int64_t kTileBytes = 1024;
// Rows or columns of two tiles, which share what is loaded.
constexpr int64_t kBand = 2 * kTile;

// A matrix `[num, depth]`, or one whose transpose lies in memory.
struct Operand {
  const float* data;
  int64_t num, depth;
  bool lies_transposed;
};

// What the processor wants to be told of eight tiles.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline __m512 load_first(const float* from, int64_t num) {
  const int64_t mask = num >= kTile ? 0xFFFF : num <= 0 ? 0 : (int64_t{1} << num) - 1;
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
}

// The bfloat16 numbers nearest to those of two vectors, which keep what is left.
inline __m512i take_nearest(__m512& low, __m512& high) {
  const auto nearest = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  const auto widened = [](__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  };
  low = _mm512_sub_ps(low, widened(_mm512_castsi512_si256(nearest)));
  high = _mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64(nearest, 1)));
  return nearest;
}

// Transposes 16 rows of 16 pairs: each stage rotates the eight bits of a pair's place by one.
inline void transpose(__m512i* rows) {
  const auto low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const auto high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  for (int stage = 0; stage < 4; ++stage) {
    __m512i next[kTile];
    for (int i = 0; i < kTile / 2; ++i) {
      next[2 * i] = _mm512_permutex2var_epi32(rows[i], low, rows[i + kTile / 2]);
      next[2 * i + 1] = _mm512_permutex2var_epi32(rows[i], high, rows[i + kTile / 2]);
    }
    std::copy_n(next, kTile, rows);
  }
}

// Makes pairs of numbers of which the first lie in the lower half.
inline __m512i paired(__m512i halves) {
  alignas(64) static constexpr uint16_t kOrder[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
}

// Packs numbers `first` to `first + 32` of 16 rows: a tile of each part, two tiles apart. Where they
// are `columns` of the right operand, each row of a tile has a pair of each.
template <int kParts>
inline void pack_tile(const Operand& operand, bool columns, int64_t row, int64_t first, char* to) {
  const int64_t num = operand.num - row, depth = operand.depth - first;
  __m512i tiles[kParts][kTile];
  for (int64_t i = 0; i < kTile; ++i) {
    __m512 low = _mm512_setzero_ps(), high = low;
    if (operand.lies_transposed) {
      const float* from = operand.data + (first + 2 * i) * operand.num + row;
      if (2 * i < depth) low = load_first(from, num);
      if (2 * i + 1 < depth) high = load_first(from + operand.num, num);
    } else if (i < num) {
      const float* from = operand.data + (row + i) * operand.depth + first;
      low = load_first(from, depth);
      high = load_first(from + kTile, depth - kTile);
    }
    for (auto& tile : tiles) tile[i] = take_nearest(low, high);
  }
  for (auto& tile : tiles) {
    if (operand.lies_transposed)
      for (auto& numbers : tile) numbers = paired(numbers);
    if (operand.lies_transposed != columns) transpose(tile);
    for (int64_t i = 0; i < kTile; ++i) _mm512_store_si512(to + i * 64, tile[i]);
    to += 2 * kTileBytes;
  }
}

// Bytes of a band of so many numbers a row.
template <int kParts>
constexpr int64_t band_bytes(int64_t depth) {
  return parts(depth, kTileDepth) * kParts * 2 * kTileBytes;
}

// Packs a band of 32 rows or columns: for each 32 numbers, two tiles of each part.
template <int kParts>
void pack_band(const Operand& operand, bool columns, int64_t row, int64_t first, int64_t last,
               char* to) {
  for (int64_t i = first; i < last; i += kTileDepth, to += kParts * 2 * kTileBytes) {
    pack_tile<kParts>(operand, columns, row, i, to);
    pack_tile<kParts>(operand, columns, row + kTile, i, to + kTileBytes);
  }
}

#define LOAD_TWO(first, second, from)             \
  do {                                            \
    _tile_loadd(first, (from), 64);               \
    _tile_loadd(second, (from) + kTileBytes, 64); \
  } while (false)
#define ADD_PRODUCTS()       \
  do {                       \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7); \
  } while (false)

// The products of two bands, 32 x 32 sums, written or added to what is there, of rows `stride` apart.
//
// Products of parts are left out that are no larger than what float32 rounds away, or of two parts
// than their own remainder.
template <int kParts>
inline void multiply_bands(const char* left, const char* right, int64_t num_steps, bool adds,
                           float* sums, int64_t stride) {
  constexpr int64_t kPart = 2 * kTileBytes;
  const auto row_bytes = static_cast<size_t>(stride) * sizeof(float);
  float* below = sums + kTile * stride;
  if (adds) {
    _tile_loadd(0, sums, row_bytes);
    _tile_loadd(1, sums + kTile, row_bytes);
    _tile_loadd(2, below, row_bytes);
    _tile_loadd(3, below + kTile, row_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < num_steps; ++i, left += kParts * kPart, right += kParts * kPart) {
    LOAD_TWO(4, 5, left);
    LOAD_TWO(6, 7, right);
    ADD_PRODUCTS();
    if (kParts > 2) {
      LOAD_TWO(6, 7, right + 2 * kPart);
      ADD_PRODUCTS();
    }
    if (kParts > 1) {
      LOAD_TWO(6, 7, right + kPart);
      ADD_PRODUCTS();
      LOAD_TWO(4, 5, left + kPart);
      if (kParts > 2) ADD_PRODUCTS();
      LOAD_TWO(6, 7, right);
      ADD_PRODUCTS();
    }
    if (kParts > 2) {
      LOAD_TWO(4, 5, left + 2 * kPart);
      ADD_PRODUCTS();
    }
  }
  _tile_stored(0, sums, row_bytes);
  _tile_stored(1, sums + kTile, row_bytes);
  _tile_stored(2, below, row_bytes);
  _tile_stored(3, below + kTile, row_bytes);
}
#undef LOAD_TWO
#undef ADD_PRODUCTS

// Writes or adds to the result `[num_rows, num_columns]` the products of one band, which is packed
// into scratch, with all bands of the other operand, which are packed already.
template <int kParts>
void multiply_band(const Operand& operand, bool is_right, int64_t band, int64_t first, int64_t last,
                   const char* others, int64_t num_others, char* own, float* result,
                   int64_t num_rows, int64_t num_columns) {
  pack_band<kParts>(operand, is_right, band * kBand, first, last, own);
  static constexpr TileShapes shapes;
  // The compiler does not know that tiles are loaded from what was packed.
  __asm__ volatile("" ::: "memory");
  _tile_loadconfig(&shapes);
  const int64_t num_steps = parts(last - first, kTileDepth);
  for (int64_t i = 0; i < num_others; ++i, others += band_bytes<kParts>(last - first)) {
    const int64_t row = kBand * (is_right ? i : band), column = kBand * (is_right ? band : i);
    const int64_t rows = std::min(num_rows - row, kBand);
    const int64_t columns = std::min(num_columns - column, kBand);
    const char *left = is_right ? others : own, *right = is_right ? own : others;
    float* to = result + row * num_columns + column;
    if (rows == kBand && columns == kBand) {
      multiply_bands<kParts>(left, right, num_steps, first > 0, to, num_columns);
      continue;
    }
    float sums[kBand * kBand];
    multiply_bands<kParts>(left, right, num_steps, false, sums, kBand);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        float& sum = to[r * num_columns + c];
        sum = sums[r * kBand + c] + (first > 0 ? sum : 0.0f);
      }
  }
  _tile_release();
}
