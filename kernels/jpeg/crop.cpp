// The bitstream crop: see crop.hpp.
#include "crop.hpp"

#include <algorithm>

#include "transcode.hpp"

namespace fastselfie::jpeg {
namespace {

// An SOF segment begins with the precision (1 byte), the height (2) and the width (2).
void patch_size(uint8_t* frame, Size size) {
  uint8_t* p = frame + 1;
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

Cut cut_intervals(Bytes jpeg, const Header& header, const std::vector<Bytes>& intervals,
                  Range mcus_x, Range mcus_y, std::vector<uint8_t>& out) {
  const CutGrid grid = cut_grid(header);
  const Range columns{mcus_x.begin / grid.width, ceil_div(mcus_x.end, grid.width)};
  const Range rows{mcus_y.begin / grid.height, ceil_div(mcus_y.end, grid.height)};
  const int intervals_per_row = header.mcus_per_row() / grid.width;
  Cut cut{columns.begin * grid.width, rows.begin * grid.height, {}};
  cut.size = {std::min(columns.size() * grid.width * header.mcu_width(),
                       header.size.width - cut.mcu_x * header.mcu_width()),
              std::min(rows.size() * grid.height * header.mcu_height(),
                       header.size.height - cut.mcu_y * header.mcu_height())};

  out.assign(jpeg.data, jpeg.data + header.scan_offset);
  patch_size(&out[header.frame_offset], cut.size);
  constexpr uint8_t kWholeSpectrum[] = {0, 63, 0};  // which some phones write wrong
  std::copy_n(kWholeSpectrum, 3, out.end() - 3);
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
  return cut;
}

std::optional<Crop> crop(Bytes jpeg, const Box& box) {
  const Header header = parse_header(jpeg);
  require_box_inside(box, header.size);
  if (!cut_grid(header)) return std::nullopt;
  std::vector<Bytes> intervals;
  if (!index_intervals(jpeg, header, intervals)) check(jpeg);
  const int mcu_w = header.mcu_width(), mcu_h = header.mcu_height();
  Crop small;
  const Cut cut =
      cut_intervals(jpeg, header, intervals,
                    {box.left / mcu_w, ceil_div(box.left + box.width, mcu_w)},
                    {box.top / mcu_h, ceil_div(box.top + box.height, mcu_h)}, small.jpeg);
  small.left = box.left - cut.mcu_x * mcu_w;
  small.top = box.top - cut.mcu_y * mcu_h;
  return small;
}

}  // namespace fastselfie::jpeg
