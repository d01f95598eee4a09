// Random crops and flips of small images that lie padded in memory.
#include <cstring>

#include "host.hpp"
#include "pixels.hpp"

namespace fastselfie::host {
void gather_crops(const ImageSet& set, const int64_t* samples, const int64_t* offsets,
                  const bool* flips, size_t count, int64_t size, uint8_t* out) {
  const int64_t stride = 3 * set.width;
  for (size_t i = 0; i < count; ++i) {
    const int64_t y = offsets[2 * i], x = offsets[2 * i + 1];
    const uint8_t* row = set.pixels + (samples[i] * set.height + y) * stride + 3 * x;
    for (int64_t k = 0; k < size; ++k, row += stride, out += 3 * size) {
      if (flips[i]) {
        copy_mirrored(row, size, out);
      } else {
        std::memcpy(out, row, 3 * size);
      }
    }
  }
}

}  // namespace fastselfie::host
