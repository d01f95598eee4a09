// The two passes of the resize. Samples are multiplied as 8.7 fixed point by weights of 14 bits, so
// sums are kept with 6 bits of fraction in 16-bit lanes: 32 samples a step on AVX2, and the colour
// conversion sees more than 8 bits.

constexpr int kFractionBits = 6;
static_assert(7 + kWeightBits - 15 == kFractionBits);

inline void add_weighted(Octets samples, Words weight, Widened& sums) {
  const Widened v = widen(samples);
  sums.low += multiply_q15(v.low << 7, weight);
  sums.high += multiply_q15(v.high << 7, weight);
}

inline Octets to_samples(const Widened& v) {
  constexpr int kHalf = 1 << (kFractionBits - 1);
  return narrow_saturated((v.low + kHalf) >> kFractionBits, (v.high + kHalf) >> kFractionBits);
}

// 16 rows of the bytes of a vector, at `in_stride`, to columns.
inline void transpose(const uint8_t* in, int in_stride, uint8_t* out, ptrdiff_t out_stride) {
  Octets v[16], w[16];
  for (int i = 0; i < 16; ++i) v[i] = load<Octets>(in + i * in_stride);
  // Interleaving row i with row i + 8, four times over, moves each bit of the row number below the
  // bits of the column number.
  const auto interleave = [](const Octets(&a)[16], Octets(&b)[16]) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = interleave_low(a[i], a[i + 8]);
      b[2 * i + 1] = interleave_high(a[i], a[i + 8]);
    }
  };
  interleave(v, w);
  interleave(w, v);
  interleave(v, w);
  interleave(w, v);
  for (int i = 0; i < 16; ++i) store_blocks(out + i * out_stride, 16 * out_stride, v[i]);
}

constexpr int kStep = sizeof(Octets);
static_assert(kTile % kStep == 0 && Plane::kRows == 16);

// A column of `steps` times kStep rows from strips of samples. `kCount`: the number of weights,
// which then stay in registers; 0: `count` says it.
template <int kCount>
inline void resample_column(const uint8_t* in, ptrdiff_t strip, const AxisFilter::Weight* weights,
                            int weight_stride, int count, int steps, uint8_t* out) {
  Words kept[kCount + 1];
  for (int k = 0; k < kCount; ++k) kept[k] = splat_pair(weights[k * weight_stride]);
  for (int step = 0; step < steps; ++step, in += kBlocks * strip, out += kStep) {
    Widened sums{};
    for (int k = 0; k < (kCount ? kCount : count); ++k) {
      add_weighted(load_blocks(in + k * Plane::kRows, strip),
                   kCount ? kept[k] : splat_pair(weights[k * weight_stride]), sums);
    }
    store(out, to_samples(sums));
  }
}

void resample_columns(const Plane& plane, const AxisFilter& filter, Range ys, uint8_t* out,
                      int out_stride) {
  const int width = filter.out_length();
  // Many rows of a column before the next, whose number of weights may differ.
  constexpr int kRows = 8 * kTile;
  alignas(64) uint8_t columns[16][kRows];
  for (int x = 0; x < width; x += 16) {
    for (int y = 0; y < ys.size(); y += kRows) {
      const int rows = std::min(kRows, round_up(ys.size() - y, kStep));
      for (int i = 0; i < std::min(16, width - x); ++i) {
        const int count = filter.count(x + i);
        const auto resample = [&](auto resample_column) {
          resample_column(plane.at(filter.start(x + i), ys.begin + y), plane.stride,
                          filter.weights(x + i), width, count, rows / kStep, columns[i]);
        };
        switch (count) {
          case 2: resample(resample_column<2>); break;
          case 3: resample(resample_column<3>); break;
          case 4: resample(resample_column<4>); break;
          case 5: resample(resample_column<5>); break;
          default: resample(resample_column<0>);
        }
      }
      for (int row = 0; row < rows; row += kStep) {
        transpose(columns[0] + row, kRows, out + (y + row) * ptrdiff_t{out_stride} + x,
                  out_stride);
      }
    }
  }
}

struct Rgb {
  Octets r, g, b;
};

// BT.601, full range, as JFIF has it; all three with kFractionBits of fraction.
inline Rgb to_rgb(const Widened& luma, const Widened& cb, const Widened& cr) {
  Widened r, g, b;
  const auto convert = [](Words y, Words u, Words v, Words& red, Words& green, Words& blue) {
    const auto q15 = [](double x) { return Words{} + static_cast<int16_t>(x * 32768 + 0.5); };
    u -= 128 << kFractionBits;
    v -= 128 << kFractionBits;
    red = y + v + multiply_q15(v, q15(0.402));
    green = y - multiply_q15(u, q15(0.344136)) - multiply_q15(v, q15(0.714136));
    blue = y + u + multiply_q15(u, q15(0.772));
  };
  convert(luma.low, cb.low, cr.low, r.low, g.low, b.low);
  convert(luma.high, cb.high, cr.high, r.high, g.high, b.high);
  return {to_samples(r), to_samples(g), to_samples(b)};
}

// kStep pixels, 48 bytes a block.
inline void store_interleaved(const Rgb& p, uint8_t* out) {
  const Octets rg0 =
      shuffle_blocks<0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5>(p.r, p.g);
  const Octets rg1 =
      shuffle_blocks<21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26>(p.r, p.g);
  const Octets rg2 =
      shuffle_blocks<0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0>(p.r, p.g);
  const auto store_third = [&](int i, Octets v) { store_blocks(out + 16 * i, 48, v); };
  store_third(0, shuffle_blocks<0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15>(rg0, p.b));
  store_third(1,
              shuffle_blocks<0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15>(rg1, p.b));
  store_third(2,
              shuffle_blocks<26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31>(rg2, p.b));
}

// A row of pixels: `pixels(x)` gives kStep of them from x on. What follows the last pixel of the
// last row belongs to somebody else.
template <typename Pixels>
inline void store_row(int width, uint8_t* rgb, const Pixels& pixels) {
  alignas(64) uint8_t last[3 * kStep];
  int x = 0;
  for (; x + kStep <= width; x += kStep) store_interleaved(pixels(x), rgb + size_t{3} * x);
  if (x == width) return;
  store_interleaved(pixels(x), last);
  std::memcpy(rgb + size_t{3} * x, last, size_t{3} * (width - x));
}

template <ColorModel kColor>
inline Rgb to_pixels(const Widened* sums) {
  if constexpr (kColor == ColorModel::kGray) {
    const Octets gray = to_samples(sums[0]);
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
    store_row(width, rgb, [&](int x) {
      Widened sums[kPlanes];
#pragma GCC unroll 3  // keeps the sums in registers
      for (int i = 0; i < kPlanes; ++i) {
        const uint8_t* in = rows[i] + x;
        sums[i] = Widened{};
        for (int k = 0; k < counts[i]; ++k, in += planes[i].stride) {
          add_weighted(load<Octets>(in), splat_pair(weights[i][k * height]), sums[i]);
        }
      }
      return to_pixels<kColor>(sums);
    });
  }
}

void resample_rows(const RowFilterInput* planes, ColorModel color, int width, uint8_t* rgb) {
  switch (color) {
    case ColorModel::kGray: return resample_rows_as<ColorModel::kGray>(planes, width, rgb);
    case ColorModel::kRgb: return resample_rows_as<ColorModel::kRgb>(planes, width, rgb);
    case ColorModel::kYCbCr: return resample_rows_as<ColorModel::kYCbCr>(planes, width, rgb);
  }
}
