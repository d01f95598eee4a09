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

template <typename Number>
void patchify(const ImageSet& images, const bool* flips, const int64_t* order, int64_t patches,
              int64_t side, const float* scale, const float* offset, int threads, Number* out) {
  const int64_t columns = images.width / side, row_bytes = 3 * side;
  // Factors for a whole row of a patch, so that the innermost loop vectorises.
  std::vector<float> scales(row_bytes), offsets(row_bytes);
  for (int64_t i = 0; i < row_bytes; ++i) {
    scales[i] = scale[i % 3];
    offsets[i] = offset[i % 3];
  }
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint8_t> mirrored(row_bytes);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < images.n * patches; ++item) {
      const int64_t image = item / patches;
      const int64_t top = order[item] / columns * side;
      const int64_t column = order[item] % columns;
      const int64_t left = side * (flips[image] ? columns - 1 - column : column);
      for (int64_t y = 0; y < side; ++y) {
        const uint8_t* row =
            images.pixels + ((image * images.height + top + y) * images.width + left) * 3;
        if (flips[image]) {
          copy_mirrored(row, side, mirrored.data());
          row = mirrored.data();
        }
        Number* const target = out + (item * side + y) * row_bytes;
        normalise(row, scales.data(), offsets.data(), row_bytes, target);
      }
    }
  }
}
