// Vectors of fixed width and the few operations on them that compilers need help with.
//
// GCC's and Clang's vector extensions are lowered to whatever the processor has, so the kernels
// read like scalar code. Unsigned lanes are used where hostile input may overflow: they wrap.

using U8x16 __attribute__((vector_size(16))) = uint8_t;
using I16x8 __attribute__((vector_size(16))) = int16_t;
using I16x16 __attribute__((vector_size(32))) = int16_t;
using I32x8 __attribute__((vector_size(32))) = int32_t;
using I32x16 __attribute__((vector_size(64))) = int32_t;
using U32x8 __attribute__((vector_size(32))) = uint32_t;

#if defined(__clang__)
#define JPEG_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
template <int... kLanes>
inline U8x16 shuffle_lanes(U8x16 a, U8x16 b) {
  return __builtin_shuffle(a, b, U8x16{kLanes...});
}
template <int... kLanes>
inline U32x8 shuffle_lanes(U32x8 a, U32x8 b) {
  return __builtin_shuffle(a, b, U32x8{kLanes...});
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

inline I16x16 splat(int16_t x) { return I16x16{} + x; }

inline I16x16 widen(U8x16 v) { return __builtin_convertvector(v, I16x16); }

// (a * b) / 2^15, rounded.
inline I16x16 multiply_q15(I16x16 a, I16x16 b) {
#if defined(JPEG_HAVE_AVX2)
  return (I16x16)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b);
#else
  const I32x16 wide = __builtin_convertvector(a, I32x16) * __builtin_convertvector(b, I32x16);
  return __builtin_convertvector((wide + (1 << 14)) >> 15, I16x16);
#endif
}

inline U8x16 narrow_saturated(I16x16 v) {
#if defined(JPEG_HAVE_AVX2)
  const __m256i packed = _mm256_packus_epi16((__m256i)v, (__m256i)v);
  return (U8x16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
  v = v < 0 ? splat(0) : v;
  v = v > 255 ? splat(255) : v;
  return __builtin_convertvector(v, U8x16);
#endif
}
