// The loops that are compiled once per instruction set, and the choice among them at run time.
//
// The code of a kernel exists once, in the .inl files, on vectors of fixed width; kernels_*.cpp
// compile it for one instruction set each. All arithmetic is on integers, so that every set gives
// the same bytes.
#pragma once

#include <string>

#include "huffman.hpp"
#include "plan.hpp"

namespace fastselfie::jpeg {

struct ComponentScan {
  const HuffmanTable* dc = nullptr;
  const HuffmanTable* ac = nullptr;
  alignas(16) std::array<int16_t, 64> quant;  // natural order
  int h = 1, v = 1;
  ComponentPlan plan;
  Plane plane;
};

struct Scan {
  int num_components = 0;
  std::array<ComponentScan, kMaxComponents> components;
  int mcus_per_row = 0;
  Range mcus_x, mcus_y;  // to be reconstructed
};

struct RowFilterInput {
  const uint8_t* rows = nullptr;  // row 0 is sample filter->support().begin
  int stride = 0;
  const AxisFilter* filter = nullptr;
};

struct Kernels {
  const char* name;
  // Decodes the MCUs of one restart interval into the planes. `bytes` is padded (see unstuff).
  // `whole`: the MCUs are all that the interval holds. Returns false where the
  // interval is damaged or holds more than its MCUs.
  bool (*decode_interval)(const Scan& scan, const uint8_t* bytes, size_t size, Range mcus,
                                 bool whole);
  // The horizontal pass: a transposed plane becomes rows of filter.out_length() samples. Writes up
  // to round_up(ys.size(), kTile) rows of round_up(out_length, kTile) bytes.
  void (*resample_columns)(const Plane& plane, const AxisFilter& filter, Range ys, uint8_t* out,
                           int out_stride);
  // The vertical pass, with the conversion to RGB on its way out. `width` pixels a row.
  void (*resample_rows)(const RowFilterInput* planes, ColorModel color, int width, uint8_t* rgb);
};

constexpr int kTile = 32;

// The best set that this processor has, unless select_kernels() said otherwise.
const Kernels& kernels();
std::vector<std::string> available_kernels();
void select_kernels(const std::string& name);  // "auto", or one of available_kernels()

namespace generic {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

}  // namespace fastselfie::jpeg
