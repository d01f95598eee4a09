// The kernels for any processor: the compiler lowers the vectors to what it has.
#include <algorithm>
#include <cstring>

#include "kernels.hpp"

namespace fastselfie::jpeg::generic {
#include "simd.inl"
#include "idct.inl"
#include "entropy.inl"
#include "resample.inl"
#include "convert.inl"

extern const Kernels kKernels{"generic",           decode_intervals, decode_coefficients,
                             resample_columns, resample_rows,   convert};
}  // namespace fastselfie::jpeg::generic
