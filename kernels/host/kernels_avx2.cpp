// The loops for x86-64 with AVX2.
#if defined(__x86_64__)
// Every header comes before the target is raised: an inline function of the standard library that
// were compiled for it could be the copy that the linker keeps for everybody.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "host.hpp"
#include "numbers.hpp"
#include "pixels.hpp"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2")
#endif

namespace fastselfie::host::avx2 {
#include "kernels.inl"

extern const Kernels kKernels{"avx2", kLoops<float>, kLoops<uint16_t>};
}  // namespace fastselfie::host::avx2

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
