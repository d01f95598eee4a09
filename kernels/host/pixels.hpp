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

}  // namespace fastselfie::host
