// The bitstream crop: a small, valid, standard JPEG of a region, cut out without decoding anything.
#pragma once

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

// Appends nothing but the intervals that the MCUs touch. `out` is overwritten; returns the MCU at
// its top left corner. Needs cut_grid(header).
struct McuOffset {
  int x = 0, y = 0;
};
McuOffset cut_mcus(Bytes jpeg, const Header& header, const std::vector<Bytes>& intervals,
                   Range mcus_x, Range mcus_y, std::vector<uint8_t>& out);

}  // namespace fastselfie::jpeg
