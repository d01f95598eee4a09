// Rows of pixels of three bytes.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastselfie::host {

// A row of `size` pixels, backwards.
inline void copy_mirrored(const uint8_t* row, int64_t size, uint8_t* out) {
  const uint8_t* pixel = row + 3 * (size - 1);
  std::memcpy(out, pixel, 3);
  // Four bytes are one move where three are two. The fourth lands on the next pixel's place, which
  // is written next; the first and the last pixel have no such neighbour to read or to write.
  for (int64_t k = 1; k < size - 1; ++k) std::memcpy(out + 3 * k, pixel - 3 * k, 4);
  std::memcpy(out + 3 * (size - 1), row, 3);
}

}  // namespace fastselfie::host
