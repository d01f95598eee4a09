// The inverse DCT, whole and reduced: libjpeg's "islow" algorithms (jidctint.c, jidctred.c;
// Loeffler, Ligtenberg and Moschytz 1989 in 13-bit fixed point), the same to the last bit for any
// valid block.
//
// Eight columns of the block are transformed at once, one to a lane of 32 bits. Only one transpose
// is needed: the second pass leaves the block transposed, as planes are stored.

constexpr int kConstBits = 13;
constexpr int kPass1Bits = 2;

constexpr uint32_t fixed(double x) {
  return static_cast<uint32_t>(static_cast<int32_t>(x * (1 << kConstBits) + (x < 0 ? -0.5 : 0.5)));
}

template <int kShift>
inline U32x8 descale(U32x8 v) {
  return (U32x8)((I32x8)(v + (1u << (kShift - 1))) >> kShift);
}

// 8 -> 8 points.
template <int kShift>
inline void idct_1d_8(U32x8 (&v)[8]) {
  U32x8 z1 = (v[2] + v[6]) * fixed(0.541196100);
  const U32x8 even2 = z1 - v[6] * fixed(1.847759065), even3 = z1 + v[2] * fixed(0.765366865);
  const U32x8 even0 = (v[0] + v[4]) << kConstBits, even1 = (v[0] - v[4]) << kConstBits;
  const U32x8 e0 = even0 + even3, e3 = even0 - even3, e1 = even1 + even2, e2 = even1 - even2;

  z1 = (v[7] + v[1]) * fixed(-0.899976223);
  const U32x8 z2 = (v[5] + v[3]) * fixed(-2.562915447);
  U32x8 z3 = v[7] + v[3], z4 = v[5] + v[1];
  const U32x8 z5 = (z3 + z4) * fixed(1.175875602);
  z3 = z3 * fixed(-1.961570560) + z5;
  z4 = z4 * fixed(-0.390180644) + z5;
  const U32x8 o0 = v[7] * fixed(0.298631336) + z1 + z3, o1 = v[5] * fixed(2.053119869) + z2 + z4;
  const U32x8 o2 = v[3] * fixed(3.072711026) + z2 + z3, o3 = v[1] * fixed(1.501321110) + z1 + z4;

  v[0] = descale<kShift>(e0 + o3);
  v[7] = descale<kShift>(e0 - o3);
  v[1] = descale<kShift>(e1 + o2);
  v[6] = descale<kShift>(e1 - o2);
  v[2] = descale<kShift>(e2 + o1);
  v[5] = descale<kShift>(e2 - o1);
  v[3] = descale<kShift>(e3 + o0);
  v[4] = descale<kShift>(e3 - o0);
}

// 8 -> 4 points; v[4] has no part in it.
template <int kShift>
inline void idct_1d_4(U32x8 (&v)[8]) {
  const U32x8 even0 = v[0] << (kConstBits + 1);
  const U32x8 even2 = v[2] * fixed(1.847759065) + v[6] * fixed(-0.765366865);
  const U32x8 odd0 = v[7] * fixed(-0.211164243) + v[5] * fixed(1.451774981) +
                     v[3] * fixed(-2.172734803) + v[1] * fixed(1.061594337);
  const U32x8 odd2 = v[7] * fixed(-0.509795579) + v[5] * fixed(-0.601344887) +
                     v[3] * fixed(0.899976223) + v[1] * fixed(2.562915447);
  const U32x8 e0 = even0 + even2, e1 = even0 - even2;
  v[0] = descale<kShift + 1>(e0 + odd2);
  v[3] = descale<kShift + 1>(e0 - odd2);
  v[1] = descale<kShift + 1>(e1 + odd0);
  v[2] = descale<kShift + 1>(e1 - odd0);
}

// 8 -> 2 points, from v[0] and the odd ones.
template <int kShift>
inline void idct_1d_2(U32x8 (&v)[8]) {
  const U32x8 even = v[0] << (kConstBits + 2);
  const U32x8 odd = v[7] * fixed(-0.720959822) + v[5] * fixed(0.850430095) +
                    v[3] * fixed(-1.272758580) + v[1] * fixed(3.624509785);
  v[0] = descale<kShift + 2>(even + odd);
  v[1] = descale<kShift + 2>(even - odd);
}

inline void transpose(U32x8 (&v)[8]) {
  U32x8 a[8];
  for (int i = 0; i < 4; ++i) {  // rows of one half against the other: 4x4 quarters exchanged
    a[i] = JPEG_SHUFFLE(v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    a[i + 4] = JPEG_SHUFFLE(v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    const U32x8 b0 = JPEG_SHUFFLE(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    const U32x8 b1 = JPEG_SHUFFLE(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    const U32x8 b2 = JPEG_SHUFFLE(a[i + 2], a[i + 3], 0, 8, 1, 9, 4, 12, 5, 13);
    const U32x8 b3 = JPEG_SHUFFLE(a[i + 2], a[i + 3], 2, 10, 3, 11, 6, 14, 7, 15);
    v[i] = JPEG_SHUFFLE(b0, b2, 0, 1, 8, 9, 4, 5, 12, 13);
    v[i + 1] = JPEG_SHUFFLE(b0, b2, 2, 3, 10, 11, 6, 7, 14, 15);
    v[i + 2] = JPEG_SHUFFLE(b1, b3, 0, 1, 8, 9, 4, 5, 12, 13);
    v[i + 3] = JPEG_SHUFFLE(b1, b3, 2, 3, 10, 11, 6, 7, 14, 15);
  }
}

// Level shift, clamp, and the first `kSize` samples of the first kSize vectors.
template <int kSize>
inline void store_samples(const U32x8 (&v)[8], uint8_t* out, ptrdiff_t stride) {
#if defined(JPEG_HAVE_AVX2)
  if constexpr (kSize == 8) {
    const __m256i center = _mm256_set1_epi8(-128);
    // Packing works within 128-bit halves; one permutation of groups of four bytes mends it.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < 8; i += 4) {
      const __m256i low = _mm256_packs_epi32((__m256i)v[i], (__m256i)v[i + 1]);
      const __m256i high = _mm256_packs_epi32((__m256i)v[i + 2], (__m256i)v[i + 3]);
      __m256i bytes = _mm256_add_epi8(_mm256_packs_epi16(low, high), center);
      bytes = _mm256_permutevar8x32_epi32(bytes, order);
      const __m128i first = _mm256_castsi256_si128(bytes);
      const __m128i second = _mm256_extracti128_si256(bytes, 1);
      _mm_storel_epi64((__m128i*)(out + i * stride), first);
      _mm_storeh_pd((double*)(out + (i + 1) * stride), _mm_castsi128_pd(first));
      _mm_storel_epi64((__m128i*)(out + (i + 2) * stride), second);
      _mm_storeh_pd((double*)(out + (i + 3) * stride), _mm_castsi128_pd(second));
    }
    return;
  }
#endif
  for (int x = 0; x < kSize; ++x) {
    for (int y = 0; y < kSize; ++y) {
      out[x * stride + y] =
          static_cast<uint8_t>(std::clamp(static_cast<int32_t>(v[x][y]), -128, 127) + 128);
    }
  }
}

template <int kSize>
inline void idct_block(const int16_t* coefficients, const int16_t* quant, uint8_t* out,
                       ptrdiff_t stride) {
  U32x8 v[8];
  for (int row = 0; row < 8; ++row) {
    using U16x8 __attribute__((vector_size(16))) = uint16_t;
    const U16x8 product = load<U16x8>(coefficients + 8 * row) * load<U16x8>(quant + 8 * row);
    v[row] = (U32x8) __builtin_convertvector((I16x8)product, I32x8);
  }
  constexpr int kShift1 = kConstBits - kPass1Bits, kShift2 = kConstBits + kPass1Bits + 3;
  if constexpr (kSize == 8) {
    idct_1d_8<kShift1>(v);
    transpose(v);
    idct_1d_8<kShift2>(v);
  } else if constexpr (kSize == 4) {
    idct_1d_4<kShift1>(v);
    transpose(v);
    idct_1d_4<kShift2>(v);
  } else {
    idct_1d_2<kShift1>(v);
    transpose(v);
    idct_1d_2<kShift2>(v);
  }
  store_samples<kSize>(v, out, stride);
}

// A block with nothing but its mean, which is also all that the reduction to 1x1 needs.
inline void fill_block(int dc, int size, uint8_t* out, ptrdiff_t stride) {
  const int value = std::clamp((static_cast<int16_t>(dc) + 4) >> 3, -128, 127) + 128;
  for (int x = 0; x < size; ++x) std::memset(out + x * stride, value, size);
}

inline void reconstruct_block(const int16_t* coefficients, bool only_dc, const int16_t* quant,
                              int size, uint8_t* out, ptrdiff_t stride) {
  if (only_dc || size == 1) {
    fill_block(coefficients[0] * quant[0], size, out, stride);
  } else if (size == 8) {
    idct_block<8>(coefficients, quant, out, stride);
  } else if (size == 4) {
    idct_block<4>(coefficients, quant, out, stride);
  } else {
    idct_block<2>(coefficients, quant, out, stride);
  }
}
