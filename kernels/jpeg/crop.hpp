// The bitstream crop: a small, valid, standard JPEG of a region, cut out without decoding anything.
#pragma once

#include <optional>

#include "header.hpp"

namespace fastselfie::jpeg {

// The grid along which a file can be cut, in MCUs: a restart interval decodes by itself, so a
// region can be cut out when every interval is a rectangle, a part of one row of MCUs or several
// whole rows.
struct CutGrid {
  int width = 0, height = 0;
  explicit operator bool() const { return width > 0; }
};
CutGrid cut_grid(const Header& header);

// What was cut: the MCU of the whole image at its top left corner, and its size in pixels.
struct Cut {
  int mcu_x = 0, mcu_y = 0;
  Size size;
};

// Overwrites `out` with the small JPEG of the intervals that these MCUs touch. Needs a cut_grid(),
// index_intervals(), and MCUs that are there.
Cut cut_intervals(Bytes jpeg, const Header& header, const std::vector<Bytes>& intervals,
                  Range mcus_x, Range mcus_y, std::vector<uint8_t>& out);

// The same for a box of pixels: the small JPEG and the box's corner in it. Nothing if there is no
// cut_grid(); throws Error.
struct Crop {
  std::vector<uint8_t> jpeg;
  int left = 0, top = 0;
};
std::optional<Crop> crop(Bytes jpeg, const Box& box);

}  // namespace fastselfie::jpeg
