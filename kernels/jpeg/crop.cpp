// The bitstream crop: see crop.hpp.
#include "crop.hpp"

#include <algorithm>

namespace fastselfie::jpeg {
namespace {

// Within an SOF segment: marker (2), length (2), precision (1), height (2), width (2).
constexpr size_t kHeightOffset = 5;

void patch_size(uint8_t* frame, Size size) {
  uint8_t* p = frame + kHeightOffset;
  p[0] = static_cast<uint8_t>(size.height >> 8);
  p[1] = static_cast<uint8_t>(size.height);
  p[2] = static_cast<uint8_t>(size.width >> 8);
  p[3] = static_cast<uint8_t>(size.width);
}

}  // namespace

CutGrid cut_grid(const Header& header) {
  const int interval = header.restart_interval, row = header.mcus_per_row();
  if (!header.is_baseline() || interval == 0) return {};
  if (row % interval == 0) return {interval, 1};
  if (interval % row == 0) return {row, interval / row};
  return {};
}

McuOffset cut_mcus(Bytes jpeg, const Header& header, const std::vector<Bytes>& intervals,
                   Range mcus_x, Range mcus_y, std::vector<uint8_t>& out) {
  const CutGrid grid = cut_grid(header);
  const Range columns{mcus_x.begin / grid.width, ceil_div(mcus_x.end, grid.width)};
  const Range rows{mcus_y.begin / grid.height, ceil_div(mcus_y.end, grid.height)};
  const int intervals_per_row = header.mcus_per_row() / grid.width;
  const McuOffset corner{columns.begin * grid.width, rows.begin * grid.height};
  const Size size{std::min(columns.size() * grid.width * header.mcu_width(),
                           header.size.width - corner.x * header.mcu_width()),
                  std::min(rows.size() * grid.height * header.mcu_height(),
                           header.size.height - corner.y * header.mcu_height())};

  out.assign(jpeg.data, jpeg.data + header.scan_offset);
  // Fill bytes may stand between the marker's 0xFF and its code.
  size_t frame = header.frame_offset;
  while (out[frame + 1] == 0xFF) ++frame;
  patch_size(&out[frame], size);
  int count = 0;
  for (int row = rows.begin; row < rows.end; ++row) {
    for (int column = columns.begin; column < columns.end; ++column, ++count) {
      if (count > 0) {
        out.push_back(0xFF);
        out.push_back(static_cast<uint8_t>(0xD0 + (count - 1) % 8));
      }
      const Bytes& interval = intervals[static_cast<size_t>(row) * intervals_per_row + column];
      out.insert(out.end(), interval.data, interval.data + interval.size);
    }
  }
  out.push_back(0xFF);
  out.push_back(0xD9);
  return corner;
}

}  // namespace fastselfie::jpeg
