// The kernels for x86-64 with AVX-512 BW, DQ and VL.
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
#pragma clang attribute push(                                                                \
    __attribute__((target("avx2,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace fastselfie::jpeg::avx2 {

// AVX-512 gains nothing for the inverse DCT, and GCC keeps less of the entropy decoder's state in
// registers with it: files with restart intervals took 4% longer.
bool decode_intervals(const Scan& scan, IntervalSource& source);
bool decode_coefficients(const ScanTables& tables, int blocks, BitPosition& position,
                         int16_t* coefficients);

}  // namespace fastselfie::jpeg::avx2

namespace fastselfie::jpeg::avx512 {
using avx2::decode_coefficients;
using avx2::decode_intervals;

#include "simd.inl"
#include "markers.inl"
#include "resample.inl"
#include "convert.inl"

extern const Kernels kKernels{"avx512", find_marker, unstuff, decode_intervals,
                             decode_coefficients, resample_columns, resample_rows, convert};
}  // namespace fastselfie::jpeg::avx512

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
