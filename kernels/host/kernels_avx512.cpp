// The loops for x86-64 with AVX-512 BW, DQ and VL.
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
#pragma clang attribute push(__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace fastselfie::host::avx512 {
#include "kernels.inl"

extern const Kernels kKernels{"avx512", kLoops<float>, kLoops<uint16_t>};
}  // namespace fastselfie::host::avx512

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
