// The two passes of the resize. Samples are multiplied as 8.7 fixed point by weights of 14 bits, so
// sums are kept with 6 bits of fraction in 16-bit lanes: 32 samples a step on AVX2, and the colour
// conversion sees more than 8 bits.

constexpr int kFractionBits = 6;
static_assert(7 + kWeightBits - 15 == kFractionBits);

inline I16x16 weighted(const uint8_t* samples, I16x16 weight) {
  return multiply_q15(widen(load<U8x16>(samples)) << 7, weight);
}

inline U8x16 to_samples(I16x16 v) {
  return narrow_saturated((v + (1 << (kFractionBits - 1))) >> kFractionBits);
}

// 16 rows of 16 bytes, at `in_stride`, to columns.
inline void transpose_16x16(const uint8_t* in, int in_stride, uint8_t* out, ptrdiff_t out_stride) {
  U8x16 v[16], w[16];
  for (int i = 0; i < 16; ++i) v[i] = load<U8x16>(in + i * in_stride);
  // Interleaving row i with row i + 8, four times over, moves each bit of the row number below the
  // bits of the column number.
  const auto interleave = [](const U8x16(&a)[16], U8x16(&b)[16]) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] =
          JPEG_SHUFFLE(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      b[2 * i + 1] = JPEG_SHUFFLE(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                                  30, 15, 31);
    }
  };
  interleave(v, w);
  interleave(w, v);
  interleave(v, w);
  interleave(w, v);
  for (int i = 0; i < 16; ++i) store(out + i * out_stride, v[i]);
}

// A column of `tiles` times kTile rows, from samples two strips apart. `kCount`: the number of weights,
// which then stay in registers; 0: `count` says it.
template <int kCount>
inline void resample_column(const uint8_t* in, ptrdiff_t strip, const AxisFilter::Weight* weights,
                            int weight_stride, int count, int tiles, uint8_t* out) {
  I16x16 kept[kCount + 1];
  for (int k = 0; k < kCount; ++k) kept[k] = splat_pair(weights[k * weight_stride]);
  for (int tile = 0; tile < tiles; ++tile, in += 2 * strip, out += kTile) {
    I16x16 low{}, high{};
    const uint8_t* column = in;
    for (int k = 0; k < (kCount ? kCount : count); ++k, column += Plane::kRows) {
      const I16x16 weight = kCount ? kept[k] : splat_pair(weights[k * weight_stride]);
      low += weighted(column, weight);
      high += weighted(column + strip, weight);
    }
    store(out, to_samples(low));
    store(out + 16, to_samples(high));
  }
}

void resample_columns(const Plane& plane, const AxisFilter& filter, Range ys, uint8_t* out,
                      int out_stride) {
  const int width = filter.out_length();
  // Many rows of a column before the next, whose number of weights may differ.
  constexpr int kTiles = 8;
  alignas(64) uint8_t columns[16][kTiles * kTile];
  for (int x = 0; x < width; x += 16) {
    for (int y = 0; y < ys.size(); y += kTiles * kTile) {
      const int tiles = std::min(kTiles, ceil_div(ys.size() - y, kTile));
      for (int i = 0; i < std::min(16, width - x); ++i) {
        const int count = filter.count(x + i);
        const auto resample = [&](auto resample_column) {
          resample_column(plane.at(filter.start(x + i), ys.begin + y), plane.stride,
                          filter.weights(x + i), width, count, tiles, columns[i]);
        };
        switch (count) {
          case 2: resample(resample_column<2>); break;
          case 3: resample(resample_column<3>); break;
          case 4: resample(resample_column<4>); break;
          case 5: resample(resample_column<5>); break;
          default: resample(resample_column<0>);
        }
      }
      for (int row = 0; row < tiles * kTile; row += 16) {
        transpose_16x16(columns[0] + row, sizeof columns[0],
                        out + (y + row) * ptrdiff_t{out_stride} + x, out_stride);
      }
    }
  }
}

struct Rgb {
  U8x16 r, g, b;
};

// BT.601, full range, as JFIF has it; all three with kFractionBits of fraction.
inline Rgb to_rgb(I16x16 luma, I16x16 cb, I16x16 cr) {
  const auto q15 = [](double x) { return splat(static_cast<int16_t>(x * 32768 + 0.5)); };
  cb -= 128 << kFractionBits;
  cr -= 128 << kFractionBits;
  const I16x16 r = luma + cr + multiply_q15(cr, q15(0.402));
  const I16x16 g = luma - multiply_q15(cb, q15(0.344136)) - multiply_q15(cr, q15(0.714136));
  const I16x16 b = luma + cb + multiply_q15(cb, q15(0.772));
  return {to_samples(r), to_samples(g), to_samples(b)};
}

// 16 pixels, 48 bytes.
inline void store_interleaved(const Rgb& p, uint8_t* out) {
  const U8x16 rg0 = JPEG_SHUFFLE(p.r, p.g, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
  const U8x16 rg1 = JPEG_SHUFFLE(p.r, p.g, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
  const U8x16 rg2 =
      JPEG_SHUFFLE(p.r, p.g, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
  store(out, JPEG_SHUFFLE(rg0, p.b, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15));
  store(out + 16, JPEG_SHUFFLE(rg1, p.b, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15));
  store(out + 32, JPEG_SHUFFLE(rg2, p.b, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31));
}

template <ColorModel kColor>
inline Rgb to_pixels(const I16x16* sums) {
  if constexpr (kColor == ColorModel::kGray) {
    const U8x16 gray = to_samples(sums[0]);
    return {gray, gray, gray};
  } else if constexpr (kColor == ColorModel::kRgb) {
    return {to_samples(sums[0]), to_samples(sums[1]), to_samples(sums[2])};
  } else {
    return to_rgb(sums[0], sums[1], sums[2]);
  }
}

template <ColorModel kColor>
void resample_rows_as(const RowFilterInput* planes, int width, uint8_t* rgb) {
  constexpr int kPlanes = kColor == ColorModel::kGray ? 1 : 3;
  const int height = planes[0].filter->out_length();
  alignas(64) uint8_t last[3 * kTile];
  for (int y = 0; y < height; ++y, rgb += size_t{3} * width) {
    const uint8_t* rows[kPlanes];
    const AxisFilter::Weight* weights[kPlanes];
    int counts[kPlanes];
    for (int i = 0; i < kPlanes; ++i) {
      const AxisFilter& filter = *planes[i].filter;
      rows[i] =
          planes[i].rows + ptrdiff_t{filter.start(y) - filter.support().begin} * planes[i].stride;
      weights[i] = filter.weights(y);
      counts[i] = filter.count(y);
    }
    for (int x = 0; x < width; x += kTile) {
      I16x16 low[kPlanes], high[kPlanes];
      for (int i = 0; i < kPlanes; ++i) {
        const uint8_t* in = rows[i] + x;
        low[i] = high[i] = I16x16{};
        for (int k = 0; k < counts[i]; ++k, in += planes[i].stride) {
          const I16x16 weight = splat_pair(weights[i][k * height]);
          low[i] += weighted(in, weight);
          high[i] += weighted(in + 16, weight);
        }
      }
      // What follows the last pixel of the last row belongs to somebody else.
      const int left = width - x;
      uint8_t* const out = rgb + size_t{3} * x;
      uint8_t* const to = left >= kTile ? out : last;
      store_interleaved(to_pixels<kColor>(low), to);
      store_interleaved(to_pixels<kColor>(high), to + 48);
      if (left < kTile) std::memcpy(out, last, size_t{3} * left);
    }
  }
}

void resample_rows(const RowFilterInput* planes, ColorModel color, int width, uint8_t* rgb) {
  switch (color) {
    case ColorModel::kGray: return resample_rows_as<ColorModel::kGray>(planes, width, rgb);
    case ColorModel::kRgb: return resample_rows_as<ColorModel::kRgb>(planes, width, rgb);
    case ColorModel::kYCbCr: return resample_rows_as<ColorModel::kYCbCr>(planes, width, rgb);
  }
}
