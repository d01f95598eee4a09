// The loops for any processor. Every aarch64 processor has NEON, so there the compiler uses it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "host.hpp"
#include "numbers.hpp"
#include "pixels.hpp"

namespace fastselfie::host {
namespace generic {
#include "kernels.inl"

extern const Kernels kKernels{"generic", kLoops<float>, kLoops<uint16_t>};
}  // namespace generic

#if defined(__aarch64__)
namespace neon {
extern const Kernels kKernels{"neon", generic::kLoops<float>, generic::kLoops<uint16_t>};
}  // namespace neon
#endif
}  // namespace fastselfie::host
