// The kernels for any processor: the compiler lowers the vectors to what it has.
// Every header comes before the target is raised: an inline function of the standard library that
// were compiled for it could be the copy that the linker keeps for everybody.
#include <algorithm>
#include <cstring>

#include "kernels.hpp"

namespace fastselfie::jpeg::generic {
#include "simd.inl"
#include "idct.inl"
#include "entropy.inl"
#include "resample.inl"

extern const Kernels kKernels{"generic", decode_interval, resample_columns, resample_rows};
}  // namespace fastselfie::jpeg::generic
