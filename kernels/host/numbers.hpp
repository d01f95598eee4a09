// Loads and stores of float, and of bfloat16 held in a uint16_t.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastselfie::host {

inline float load(float value) { return value; }

inline float load(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline void store(float value, float& out) { out = value; }

// A bfloat16 is the upper half of a float, rounded to nearest, ties to even. NaN needs a branch:
// the rounding could turn it into infinity or zero.
inline void store(float value, uint16_t& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  out = static_cast<uint16_t>(value == value ? rounded : 0x7FC0);
}

}  // namespace fastselfie::host
