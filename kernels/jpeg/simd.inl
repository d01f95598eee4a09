// Vectors of fixed width and the few operations on them that compilers need help with.
//
// GCC's and Clang's vector extensions are lowered to whatever the processor has, so the kernels
// read like scalar code. Unsigned lanes are used where hostile input may overflow: they wrap.

using U8x16 __attribute__((vector_size(16))) = uint8_t;
using I16x8 __attribute__((vector_size(16))) = int16_t;
using I16x16 __attribute__((vector_size(32))) = int16_t;
using I32x8 __attribute__((vector_size(32))) = int32_t;
using U32x8 __attribute__((vector_size(32))) = uint32_t;

#if defined(__clang__)
#define JPEG_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
template <int... kLanes>
inline U8x16 shuffle_lanes(U8x16 a, U8x16 b) {
  return __builtin_shuffle(a, b, U8x16{kLanes...});
}
template <int... kLanes>
inline I16x8 shuffle_lanes(I16x8 a, I16x8 b) {
  return __builtin_shuffle(a, b, I16x8{kLanes...});
}
#define JPEG_SHUFFLE(a, b, ...) shuffle_lanes<__VA_ARGS__>(a, b)
#endif

template <typename Vector>
inline Vector load(const void* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename Vector>
inline void store(void* p, Vector v) {
  std::memcpy(p, &v, sizeof v);
}

// The index of the first byte that is not zero, or the number of bytes.
inline int first_set(U8x16 v) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  const auto halves = load<std::array<uint64_t, 2>>(&v);
  if (halves[0] != 0) return __builtin_ctzll(halves[0]) / 8;
  return halves[1] != 0 ? 8 + __builtin_ctzll(halves[1]) / 8 : 16;
}

// What bytes are searched in.
#if defined(JPEG_HAVE_AVX2)
using Search __attribute__((vector_size(32))) = uint8_t;
inline int first_set(Search v) {
  const auto zeros = _mm256_movemask_epi8(_mm256_cmpeq_epi8((__m256i)v, _mm256_setzero_si256()));
  return zeros == -1 ? 32 : __builtin_ctz(~zeros);
}
#else
using Search = U8x16;
#endif

// What the inverse DCT and the resize work on: vectors of kBlocks times 128 bits, a block in each,
// since AVX2 moves values between those slowly. Wide values are of 32 bits; only descale() knows
// their order within a block. AVX-512 shares the code of AVX2.
#if defined(JPEG_HAVE_AVX2)

constexpr int kBlocks = 2;
using Words = I16x16;
using Octets __attribute__((vector_size(32))) = uint8_t;
using Lanes = U32x8;  // they wrap
inline Words interleave_low(Words a, Words b) {
  return (Words)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b);
}
inline Words interleave_high(Words a, Words b) {
  return (Words)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b);
}
inline Octets interleave_low(Octets a, Octets b) {
  return (Octets)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b);
}
inline Octets interleave_high(Octets a, Octets b) {
  return (Octets)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b);
}
// JPEG_SHUFFLE in each block.
template <int... kLanes>
inline Octets shuffle_blocks(Octets a, Octets b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kLanes + (kLanes & 16))...,
                                 (kLanes + (kLanes & 16) + 16)...);
#else
  return __builtin_shuffle(
      a, b, Octets{(kLanes + (kLanes & 16))..., (kLanes + (kLanes & 16) + 16)...});
#endif
}
// Blocks that are `step` apart.
inline Octets load_blocks(const uint8_t* p, ptrdiff_t step) {
  const auto block = [&](int i) { return _mm_loadu_si128((const __m128i*)(p + i * step)); };
  return (Octets)_mm256_inserti128_si256(_mm256_castsi128_si256(block(0)), block(1), 1);
}
inline void store_blocks(uint8_t* p, ptrdiff_t step, Octets v) {
  store(p, _mm256_castsi256_si128((__m256i)v));
  store(p + step, _mm256_extracti128_si256((__m256i)v, 1));
}
// The same of what both halves hold.
inline Words splat_pair(uint32_t halves) {
  return (Words)_mm256_set1_epi32(static_cast<int>(halves));
}
// (a * b) / 2^15, rounded.
inline Words multiply_q15(Words a, Words b) {
  return (Words)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b);
}
inline Octets narrow_saturated(Words low, Words high) {
  return (Octets)_mm256_packus_epi16((__m256i)low, (__m256i)high);
}
inline Lanes multiply_add(Words a, int pair) {
  return (Lanes)_mm256_madd_epi16((__m256i)a, _mm256_set1_epi32(pair));
}
inline Lanes shift_right(Lanes v, int bits) { return (Lanes)_mm256_srai_epi32((__m256i)v, bits); }
inline Words pack(Lanes low, Lanes high) {
  return (Words)_mm256_packs_epi32((__m256i)low, (__m256i)high);
}
inline Octets to_octets(Words a, Words b) {
  return (Octets)_mm256_packs_epi16((__m256i)a, (__m256i)b) + 128;
}
inline Words repeat_block(const int16_t* values) {
  return (Words)_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)values));
}
inline Words load_blocks(const int16_t* const (&blocks)[kBlocks], int offset) {
  const auto block = [&](int i) { return _mm_load_si128((const __m128i*)(blocks[i] + offset)); };
  return (Words)_mm256_inserti128_si256(_mm256_castsi128_si256(block(0)), block(1), 1);
}

#else

constexpr int kBlocks = 1;
using Words = I16x8;
using Octets = U8x16;
inline Words interleave_low(Words a, Words b) {
  return JPEG_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
inline Words interleave_high(Words a, Words b) {
  return JPEG_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
inline Octets interleave_low(Octets a, Octets b) {
  return JPEG_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Octets interleave_high(Octets a, Octets b) {
  return JPEG_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
inline Octets to_octets(Words a, Words b) {
#if defined(JPEG_HAVE_NEON)
  return (Octets)vqmovn_high_s16(vqmovn_s16((int16x8_t)a), (int16x8_t)b) + 128;
#else
  alignas(16) uint8_t bytes[16];
  for (int i = 0; i < 8; ++i) {
    bytes[i] = static_cast<uint8_t>(std::clamp<int>(a[i], -128, 127) + 128);
    bytes[8 + i] = static_cast<uint8_t>(std::clamp<int>(b[i], -128, 127) + 128);
  }
  return load<Octets>(bytes);
#endif
}
template <int... kLanes>
inline Octets shuffle_blocks(Octets a, Octets b) {
  return JPEG_SHUFFLE(a, b, kLanes...);
}
inline Octets load_blocks(const uint8_t* p, ptrdiff_t) { return load<Octets>(p); }
inline void store_blocks(uint8_t* p, ptrdiff_t, Octets v) { store(p, v); }
inline Words splat_pair(uint32_t halves) { return Words{} + static_cast<int16_t>(halves); }
inline Words multiply_q15(Words a, Words b) {
#if defined(JPEG_HAVE_NEON)
  // Saturates -2^15 * -2^15, which no caller has: one factor is a weight or a constant.
  return (Words)vqrdmulhq_s16((int16x8_t)a, (int16x8_t)b);
#else
  const I32x8 wide = __builtin_convertvector(a, I32x8) * __builtin_convertvector(b, I32x8);
  return __builtin_convertvector((wide + (1 << 14)) >> 15, Words);
#endif
}
inline Octets narrow_saturated(Words low, Words high) {
#if defined(JPEG_HAVE_NEON)
  return (Octets)vqmovun_high_s16(vqmovun_s16((int16x8_t)low), (int16x8_t)high);
#else
  I16x16 v;
  std::memcpy(&v, &low, sizeof low);
  std::memcpy((char*)&v + sizeof low, &high, sizeof high);
  v = v < 0 ? I16x16{} : v;
  v = v > 255 ? I16x16{} + 255 : v;
  return __builtin_convertvector(v, Octets);
#endif
}
inline Words repeat_block(const int16_t* values) { return load<Words>(values); }
inline Words load_blocks(const int16_t* const (&blocks)[kBlocks], int offset) {
  return load<Words>(blocks[0] + offset);
}

#endif

// Bytes as 16 bits each. Only widen() and narrow_saturated() know the order within a block.
struct Widened {
  Words low, high;
};
inline Widened widen(Octets v) {
  return {(Words)interleave_low(v, Octets{}), (Words)interleave_high(v, Octets{})};
}

// a * b; a hostile product wraps.
inline Words multiply(Words a, Words b) {
  using Unsigned __attribute__((vector_size(sizeof(Words)))) = uint16_t;
  return (Words)((Unsigned)a * (Unsigned)b);
}

#if defined(JPEG_HAVE_AVX2)
struct Pair {
  Words low, high;
};
struct Wide {
  Lanes low, high;
  Wide operator+(Wide other) const { return {low + other.low, high + other.high}; }
  Wide operator-(Wide other) const { return {low - other.low, high - other.high}; }
};
inline Pair pair(Words a, Words b) { return {interleave_low(a, b), interleave_high(a, b)}; }
// a * first + b * second of pair(a, b).
inline Wide dot(Pair p, int first, int second) {
  const int constants = static_cast<int>(static_cast<uint32_t>(second) << 16 | (first & 0xFFFF));
  return {multiply_add(p.low, constants), multiply_add(p.high, constants)};
}
// v / 2^kShift, rounded and saturated.
template <int kShift>
inline Words descale(Wide v) {
  constexpr uint32_t kHalf = 1u << (kShift - 1);
  return pack(shift_right(v.low + kHalf, kShift), shift_right(v.high + kHalf, kShift));
}
#elif defined(JPEG_HAVE_NEON)
struct Pair {
  int16x8_t a, b;
};
struct Wide {
  uint32x4_t low, high;  // they wrap
  Wide operator+(Wide other) const { return {low + other.low, high + other.high}; }
  Wide operator-(Wide other) const { return {low - other.low, high - other.high}; }
};
inline Pair pair(Words a, Words b) { return {(int16x8_t)a, (int16x8_t)b}; }
inline Wide dot(Pair p, int first, int second) {
  const auto f = static_cast<int16_t>(first), s = static_cast<int16_t>(second);
  const int32x4_t low = vmull_n_s16(vget_low_s16(p.a), f), high = vmull_high_n_s16(p.a, f);
  return {(uint32x4_t)vmlal_n_s16(low, vget_low_s16(p.b), s),
          (uint32x4_t)vmlal_high_n_s16(high, p.b, s)};
}
template <int kShift>
inline Words descale(Wide v) {
  constexpr uint32_t kHalf = 1u << (kShift - 1);
  const auto shifted = [](uint32x4_t x) { return vshrq_n_s32((int32x4_t)(x + kHalf), kShift); };
  return (Words)vqmovn_high_s32(vqmovn_s32(shifted(v.low)), shifted(v.high));
}
#else
using Wide = U32x8;  // they wrap
struct Pair {
  Wide a, b;
};
inline Pair pair(Words a, Words b) {
  const auto widened = [](Words v) { return (Wide)__builtin_convertvector(v, I32x8); };
  return {widened(a), widened(b)};
}
inline Wide dot(Pair p, int first, int second) {
  return p.a * static_cast<uint32_t>(first) + p.b * static_cast<uint32_t>(second);
}
template <int kShift>
inline Words descale(Wide v) {
  I32x8 shifted = (I32x8)(v + (1u << (kShift - 1))) >> kShift;
  shifted = shifted < INT16_MIN ? I32x8{} + INT16_MIN : shifted;
  shifted = shifted > INT16_MAX ? I32x8{} + INT16_MAX : shifted;
  return __builtin_convertvector(shifted, Words);
}
#endif
