// Counter-based random numbers; fastselfie/data/draws.py defines the streams.
#include <algorithm>

#include "host.hpp"

namespace fastselfie::host {
namespace {

struct Words {
  uint32_t w[4];
};

Words philox4x32(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{c.w[0]} * 0xD2511F53;
    const uint64_t p1 = uint64_t{c.w[2]} * 0xCD9E8D57;
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

}  // namespace

void uniform(uint32_t seed, uint32_t purpose, const int64_t* epochs, const int64_t* samples,
             size_t n, size_t count, double* out) {
  for (size_t i = 0; i < n; ++i) {
    const auto sample = static_cast<uint32_t>(samples[i]);
    const auto epoch = static_cast<uint32_t>(epochs[i]);
    for (size_t done = 0; done < count; done += 4) {
      const auto block = static_cast<uint32_t>(done / 4);
      const Words words = philox4x32({{sample, epoch, block, 0}}, seed, purpose);
      for (size_t k = 0; k < std::min<size_t>(4, count - done); ++k) *out++ = words.w[k] * 0x1p-32;
    }
  }
}

}  // namespace fastselfie::host
