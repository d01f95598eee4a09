// Copies of rows of RGB pixels, three bytes each.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastselfie::host {

// Copies a row of `size` pixels in reverse order.
inline void copy_mirrored(const uint8_t* row, int64_t size, uint8_t* out) {
  const uint8_t* pixel = row + 3 * (size - 1);
  std::memcpy(out, pixel, 3);
  // Copying four bytes takes one move, three take two. The fourth byte is overwritten by the next
  // pixel. The first and the last pixel are apart, to stay inside the row when reading and writing.
  for (int64_t k = 1; k < size - 1; ++k) std::memcpy(out + 3 * k, pixel - 3 * k, 4);
  std::memcpy(out + 3 * (size - 1), row, 3);
}

// Copies a row of `size` pixels without colour: each level is the luma of ITU-R BT.601, rounded as
// Pillow's mode L. `out` may be `row`.
inline void copy_grey(const uint8_t* row, int64_t size, uint8_t* out) {
  for (int64_t i = 0; i < 3 * size; i += 3) {
    const uint32_t luma =
        (19595u * row[i] + 38470u * row[i + 1] + 7471u * row[i + 2] + 32768u) >> 16;
    out[i] = out[i + 1] = out[i + 2] = static_cast<uint8_t>(luma);
  }
}

}  // namespace fastselfie::host
