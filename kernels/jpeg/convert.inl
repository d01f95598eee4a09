// The pixels of planes whose samples are pixels already, but for halved chroma: what the two passes
// of the resize give at that size, to the last bit, without their filters.

// Two samples for one along a row: 3/4 of the nearer sample and 1/4 of the next, as libjpeg's "fancy
// upsampling". `scratch` takes the row between two copies of its ends.
inline void enlarge_row(const PlainInput& input, int row, int first_pixel, uint8_t* scratch,
                        uint8_t* out) {
  const int count = input.xs.size();
  const uint8_t* const samples = input.plane.at(input.xs.begin, row);
  scratch[0] = samples[0];
  std::memcpy(scratch + 1, samples, count);
  scratch[count + 1] = samples[count - 1];
  // out[0] is the first of the two pixels whose nearer sample is first_pixel / 2.
  const uint8_t* const nearer = scratch + 1 + (first_pixel / 2 - input.xs.begin);
  for (int i = 0; i <= count; i += kStep) {
    const auto at = [&](int x) { return widen(load<Octets>(nearer + i + x)); };
    const Widened before = at(-1), center = at(0), behind = at(1);
    const auto pixels = [](Words left, Words middle, Words right) {
      middle = 3 * middle + 2;
      return (Octets)(((middle + left) >> 2) + ((middle + right) >> 2 << 8));
    };
    store_blocks(out + 2 * i, 32, pixels(before.low, center.low, behind.low));
    store_blocks(out + 2 * i + 16, 32, pixels(before.high, center.high, behind.high));
  }
}

// The two rows between which a row of pixels lies, and the shares of both in 64ths.
struct RowPair {
  const uint8_t* first;
  const uint8_t* second;
  int16_t first_share, second_share;
};

// Keeps the last two rows that were enlarged.
class PlainRows {
 public:
  PlainRows(const PlainInput& input, const Box& box)
      : input_(input), left_(box.left), stride_(plain_scratch_stride(box.width)) {}

  RowPair at(int y) {
    if (!input_.halved_y) return {row(y), nullptr, 64, 0};
    const int nearer = y / 2;
    if (y % 2) return {row(nearer), row(nearer + 1), 48, 16};
    return {row(nearer - 1), row(nearer), 16, 48};
  }

 private:
  const uint8_t* row(int y) {
    y = std::clamp(y, input_.ys.begin, input_.ys.end - 1);
    if (!input_.halved_x) return input_.plane.at(left_, y);
    uint8_t* const out = input_.scratch + (y & 1) * stride_;
    if (enlarged_[y & 1] != y) {
      enlarge_row(input_, y, left_, input_.scratch + 2 * stride_, out);
      enlarged_[y & 1] = y;
    }
    return out + (left_ & 1);
  }

  const PlainInput& input_;
  const int left_, stride_;
  int enlarged_[2] = {-1, -1};
};

// kStep samples with kFractionBits of fraction.
template <bool kBlend>
inline Widened blended(const RowPair& rows, int x) {
  const Widened first = widen(load<Octets>(rows.first + x));
  if constexpr (kBlend) {
    const Widened second = widen(load<Octets>(rows.second + x));
    return {first.low * rows.first_share + second.low * rows.second_share,
            first.high * rows.first_share + second.high * rows.second_share};
  } else {
    return {first.low << kFractionBits, first.high << kFractionBits};
  }
}

// Only the components behind the first may be halved.
template <ColorModel kColor, bool kHalvedRows>
inline Rgb convert_pixels(const RowPair* rows, int x) {
  const auto sample = [&](int i) { return load<Octets>(rows[i].first + x); };
  if constexpr (kColor == ColorModel::kGray) {
    return {sample(0), sample(0), sample(0)};
  } else if constexpr (kColor == ColorModel::kRgb) {
    return {sample(0), sample(1), sample(2)};
  } else {
    return to_rgb(blended<false>(rows[0], x), blended<kHalvedRows>(rows[1], x),
                  blended<kHalvedRows>(rows[2], x));
  }
}

template <ColorModel kColor, bool kHalvedRows>
void convert_as(const PlainInput* planes, const Box& box, uint8_t* rgb) {
  PlainRows sources[] = {{planes[0], box}, {planes[1], box}, {planes[2], box}};
  for (int y = box.top; y < box.top + box.height; ++y, rgb += size_t{3} * box.width) {
    RowPair rows[kMaxComponents];
    constexpr int kPlanes = kColor == ColorModel::kGray ? 1 : 3;
    for (int i = 0; i < kPlanes; ++i) rows[i] = sources[i].at(y);
    store_row(box.width, rgb,
              [&](int x) { return convert_pixels<kColor, kHalvedRows>(rows, x); });
  }
}

void convert(const PlainInput* planes, ColorModel color, const Box& box, uint8_t* rgb) {
  if (color == ColorModel::kGray) {
    convert_as<ColorModel::kGray, false>(planes, box, rgb);
  } else if (color == ColorModel::kRgb) {
    convert_as<ColorModel::kRgb, false>(planes, box, rgb);
  } else if (planes[1].halved_y) {
    convert_as<ColorModel::kYCbCr, true>(planes, box, rgb);
  } else {
    convert_as<ColorModel::kYCbCr, false>(planes, box, rgb);
  }
}
