// The kernels for any processor: the compiler lowers the vectors to what it has.
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels.hpp"

namespace fastselfie::jpeg::generic {
#include "simd.inl"
#include "markers.inl"
#include "idct.inl"
#include "entropy.inl"
#include "resample.inl"
#include "convert.inl"

extern const Kernels kKernels{"generic", find_marker, unstuff, decode_intervals,
                             decode_coefficients, resample_columns, resample_rows, convert};
}  // namespace fastselfie::jpeg::generic
