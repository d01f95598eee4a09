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
  alignas(16) std::array<int16_t, 64> quant;  // natural order
  int h = 1, v = 1;
  ComponentPlan plan;
  Plane plane;
};

struct Scan {
  const ScanTables* tables = nullptr;
  int num_components = 0;
  std::array<ComponentScan, kMaxComponents> components;
  int mcus_per_row = 0;
  Range mcus_x, mcus_y;  // to be reconstructed
};

// How far the bits of an interval are read.
struct BitPosition {
  uint64_t bits = 0;              // the next, from the highest on
  uint64_t count = 0;             // how many are counted; more may be loaded
  const uint8_t* next = nullptr;  // the byte behind `count` bits
  const uint8_t* end = nullptr;   // of the interval, which is padded (see unstuff)

  // Negative where more was read than the interval has.
  ptrdiff_t bits_left() const { return (end - next) * 8 + static_cast<ptrdiff_t>(count); }
};

// A restart interval, or its beginning.
struct Interval {
  const uint8_t* bytes = nullptr;  // padded (see unstuff)
  size_t size = 0;
  Range mcus;          // to be decoded
  bool whole = false;  // they are all that it holds
};

constexpr int kLanes = 2;  // intervals that are decoded at a time

// The intervals of a scan that a plan needs, in their order.
class IntervalSource {
 public:
  IntervalSource(const Header& header, const Plan& plan, const std::vector<Bytes>& intervals,
                 bool checked, std::array<std::vector<uint8_t>, kLanes>& unstuffed);
  // False: there is none any more. What a lane got is valid until it asks again.
  bool next(int lane, Interval& interval);

 private:
  const std::vector<Bytes>& intervals_;
  std::array<std::vector<uint8_t>, kLanes>& unstuffed_;
  const bool checked_;
  const int per_row_, count_, length_;  // MCUs of a row, of the image, of an interval
  const Range xs_, ys_;                 // MCUs that are wanted
  int next_;
};

struct RowFilterInput {
  const uint8_t* rows = nullptr;  // row 0 is sample filter->support().begin
  int stride = 0;
  const AxisFilter* filter = nullptr;
};

// A component of a plain plan.
struct PlainInput {
  Plane plane;
  Range xs, ys;  // its samples that are read
  bool halved_x = false, halved_y = false;
  // Two rows of enlarged samples, and behind them one that is about to be; null if not halved.
  uint8_t* scratch = nullptr;
};

constexpr int kTile = 32;

// What one row of scratch needs for `width` pixels: vectors may go past its end by two tiles.
constexpr int plain_scratch_stride(int width) { return round_up(width, kTile) + 2 * kTile; }

struct Kernels {
  const char* name;
  // The first 0xFF that no zero follows, or `end`.
  const uint8_t* (*find_marker)(const uint8_t* begin, const uint8_t* end);
  // Copies the interval without the zeros stuffed behind each 0xFF. Returns the number of bytes.
  // `out` has room for a vector more than the interval.
  size_t (*unstuff)(Bytes interval, uint8_t* out);
  // Decodes intervals into the planes. Returns false where one is damaged or holds more than its
  // MCUs.
  bool (*decode_intervals)(const Scan& scan, IntervalSource& source);
  // Decodes `blocks` blocks, at most kChunkBlocks and whole MCUs. The coefficients, zeros before,
  // are in zigzag order; DC is the difference to the block before. Returns false at a bad code.
  bool (*decode_coefficients)(const ScanTables& tables, int blocks, BitPosition& position,
                              int16_t* coefficients);
  // The horizontal pass: a plane in strips becomes rows of filter.out_length() samples. Writes up
  // to round_up(ys.size(), kTile) rows of round_up(out_length, kTile) bytes.
  void (*resample_columns)(const Plane& plane, const AxisFilter& filter, Range ys, uint8_t* out,
                           int out_stride);
  // The vertical pass, with the conversion to RGB on its way out. `width` pixels a row.
  void (*resample_rows)(const RowFilterInput* planes, ColorModel color, int width, uint8_t* rgb);
  // The pixels of a box from the planes of a plain plan.
  void (*convert)(const PlainInput* planes, ColorModel color, const Box& box, uint8_t* rgb);
};

// The set that FASTSELFIE_KERNELS names, else the best that this processor has, unless
// select_kernels() said otherwise.
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
#elif defined(__aarch64__)
namespace neon {
extern const Kernels kKernels;
}
#endif

}  // namespace fastselfie::jpeg
