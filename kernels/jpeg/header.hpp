// Parsing of a JPEG's marker segments up to its first scan, and the index of its restart intervals.
// (ITU-T T.81 annex B; the names are the standard's.)
#pragma once

#include <array>

#include "common.hpp"

namespace fastselfie::jpeg {

// T.81 figure 6: the k-th coefficient in zigzag order, in natural order.
inline constexpr std::array<uint8_t, 64> kNaturalOrder = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

struct HuffmanSpec {
  bool defined = false;
  std::array<uint8_t, 16> counts{};    // codes of length 1..16
  std::array<uint8_t, 256> symbols{};  // in order of increasing code
};

struct Component {
  uint8_t id = 0, quant_table = 0, dc_table = 0, ac_table = 0;
  int h = 1, v = 1;  // sampling factors; 1x1 when alone, since a lone component is not interleaved
};

enum class ColorModel { kGray, kYCbCr, kRgb };

struct Header {
  Size size;
  int num_components = 0;
  std::array<Component, kMaxComponents> components;
  int h_max = 1, v_max = 1;
  ColorModel color = ColorModel::kGray;
  bool progressive = false;
  bool single_scan = false;  // the first scan holds every component
  int restart_interval = 0;  // in MCUs; 0: none

  std::array<bool, 4> quant_defined{};
  std::array<std::array<uint16_t, 64>, 4> quant{};  // in zigzag order, as stored
  std::array<HuffmanSpec, 4> dc_specs, ac_specs;

  // The version, the unit and the densities of a JFIF segment, as stored; libjpeg's defaults.
  std::array<uint8_t, 7> jfif{1, 1, 0, 0, 1, 0, 1};

  size_t frame_offset = 0;  // of the SOF segment, behind its length
  size_t scan_offset = 0;   // of the first entropy-coded byte

  // Whether one pass over one scan decodes it: what the crop and the fast decoder need.
  bool is_baseline() const { return !progressive && single_scan; }

  int mcu_width() const { return 8 * h_max; }
  int mcu_height() const { return 8 * v_max; }
  int mcus_per_row() const { return ceil_div(size.width, mcu_width()); }
  int mcu_rows() const { return ceil_div(size.height, mcu_height()); }
  int mcu_count() const { return mcus_per_row() * mcu_rows(); }
  Size component_size(const Component& c) const {
    return {ceil_div(size.width * c.h, h_max), ceil_div(size.height * c.v, v_max)};
  }
  Size component_blocks(const Component& c) const {  // those that hold samples
    const Size samples = component_size(c);
    return {ceil_div(samples.width, 8), ceil_div(samples.height, 8)};
  }
};

// Accepts what libjpeg accepts: bytes between segments are skipped, and fields that decide nothing
// are not checked. Throws Error on anything malformed, Unsupported on CMYK, 12-bit, arithmetic and
// lossless files.
Header parse_header(Bytes jpeg);

// The entropy-coded bytes of each restart interval, without the markers. One interval when the file
// has no restart markers. Throws when libjpeg would lose pixels to their number or numbering.
//
// Returns whether the scan ends in an EOI marker, right where the header promises its end. If not,
// nothing but decoding every interval to its end tells whether the scan is whole.
[[nodiscard]] bool index_intervals(Bytes jpeg, const Header& header,
                                   std::vector<Bytes>& intervals);

}  // namespace fastselfie::jpeg
