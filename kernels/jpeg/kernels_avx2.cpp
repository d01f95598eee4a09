// The kernels for x86-64 with AVX2 and BMI2.
#if defined(__x86_64__)
// Every header comes before the target is raised: an inline function of the standard library that
// were compiled for it could be the copy that the linker keeps for everybody.
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels.hpp"

#include <immintrin.h>

#define JPEG_HAVE_AVX2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2")
#endif

namespace fastselfie::jpeg::avx2 {
#include "simd.inl"
#include "markers.inl"
#include "idct.inl"
#include "entropy.inl"
#include "resample.inl"
#include "convert.inl"

extern const Kernels kKernels{"avx2", find_marker, unstuff, decode_intervals,
                             decode_coefficients, resample_columns, resample_rows, convert};
}  // namespace fastselfie::jpeg::avx2

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
