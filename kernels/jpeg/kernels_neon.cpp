// The kernels for aarch64, all of which have NEON.
#if defined(__aarch64__)
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels.hpp"

#include <arm_neon.h>

#define JPEG_HAVE_NEON

namespace fastselfie::jpeg::neon {
#include "simd.inl"
#include "markers.inl"
#include "idct.inl"
#include "entropy.inl"
#include "resample.inl"
#include "convert.inl"

extern const Kernels kKernels{"neon", find_marker, unstuff, decode_intervals,
                             decode_coefficients, resample_columns, resample_rows, convert};
}  // namespace fastselfie::jpeg::neon
#endif
