// Normalises, flips, cuts into patches and orders them, in one pass over the pixels.

// Writes level * scale + offset of `size` levels. A function of its own, because clang compiles the
// body of a parallel region for any processor. Steps of 32 levels: AVX-512 would take 64, which is
// longer than a row of a small patch.
template <typename Number>
void normalise(const uint8_t* levels, const float* scales, const float* offsets, int64_t size,
               Number* out) {
#pragma omp simd simdlen(32)
  for (int64_t i = 0; i < size; ++i) {
    store(static_cast<float>(levels[i]) * scales[i] + offsets[i], out[i]);
  }
}

// Fills a row of `size` factors from those of the three channels.
inline void repeat(const float* factors, int64_t size, float* row) {
  for (int64_t i = 0; i < size; ++i) row[i] = factors[i % 3];
}

template <typename Number>
void patchify(const ImageSet& images, const bool* flips, const int64_t* order, int64_t patches,
              const Cut& cut, int threads, Number* out) {
  const int64_t side = cut.side, window = cut.window, row_bytes = 3 * window;
  const int64_t columns = images.width / side, places = columns * (images.height / side);
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint8_t> changed(row_bytes);
    // Factors for a whole row of a patch, so that the innermost loop vectorises.
    std::vector<float> scales(row_bytes), offsets(row_bytes);
    repeat(cut.scale, row_bytes, scales.data());
    repeat(cut.offset, row_bytes, offsets.data());
#pragma omp for schedule(static)
    for (int64_t item = 0; item < images.n * patches; ++item) {
      const int64_t image = item / patches, place = image * places + order[item];
      const int64_t centre[] = {(side - window) / 2, (side - window) / 2};
      const int64_t* const corner = cut.corners ? cut.corners + 2 * place : centre;
      const int64_t top = order[item] / columns * side + corner[0];
      const int64_t column = order[item] % columns * side + corner[1];
      const int64_t left = flips[image] ? images.width - window - column : column;
      const bool grey = cut.grey && cut.grey[place];
      if (cut.own_factors) {
        repeat(cut.scale + 3 * place, row_bytes, scales.data());
        repeat(cut.offset + 3 * place, row_bytes, offsets.data());
      }
      for (int64_t y = 0; y < window; ++y) {
        const uint8_t* row =
            images.pixels + ((image * images.height + top + y) * images.width + left) * 3;
        if (flips[image]) {
          copy_mirrored(row, window, changed.data());
          row = changed.data();
        }
        if (grey) {
          copy_grey(row, window, changed.data());
          row = changed.data();
        }
        Number* const target = out + (item * window + y) * row_bytes;
        normalise(row, scales.data(), offsets.data(), row_bytes, target);
      }
    }
  }
}
