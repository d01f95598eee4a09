// One thread's decoder: see decode.hpp.
#include "decode.hpp"

#include <algorithm>
#include <cstring>

#include "transcode.hpp"

namespace fastselfie::jpeg {
namespace {

constexpr size_t kMaxScratch = size_t{1} << 30;  // bytes a component between the two passes

void require_output(Size size) {
  if (size.width < 1 || size.height < 1 || size.width > kMaxOutputSide ||
      size.height > kMaxOutputSide) {
    throw Error("bad output size");
  }
}

// Where along an axis each of `count` positions from `begin` finds its pixel; -1: a zero.
void map_axis(int begin, int count, int length, Padding padding, std::vector<int>& map) {
  map.resize(count);
  for (int i = 0; i < count; ++i) {
    int at = begin + i;
    if (at < 0 || at >= length) {
      at = padding == Padding::kZero ? -1 : at < 0 ? -at : 2 * (length - 1) - at;
      if (at >= length || (at < 0 && padding == Padding::kReflect)) {
        throw Error("a reflected box reaches further than the image is wide or high");
      }
    }
    map[i] = at;
  }
}

}  // namespace

void Decoder::decode_resized(Bytes jpeg, const Box& box, bool flip, Size size, uint8_t* rgb,
                             Engine engine) {
  require_output(size);
  header_ = parse_header(jpeg);
  require_box_inside(box, header_.size);
  make_plan(header_, box, size, flip, plan_);
  decode(jpeg, engine);
  if (plan_.plain) {
    convert(box, rgb);
  } else {
    resample(size, rgb);
  }
}

std::vector<Decoder::PlaneView> Decoder::decode_planes(Bytes jpeg, const Box& box, int block_size,
                                                       Engine engine) {
  header_ = parse_header(jpeg);
  require_box_inside(box, header_.size);
  make_plane_plan(header_, box, block_size, plan_);
  decode(jpeg, engine);
  std::vector<PlaneView> views;
  for (int i = 0; i < plan_.num_planes; ++i) {
    const ComponentPlan& c = plan_.components[i];
    views.push_back(
        {planes_[i], {c.blocks_x.size() * c.block_size, c.blocks_y.size() * c.block_size}});
  }
  return views;
}

void Decoder::decode(Bytes jpeg, Engine engine) {
  for (int i = 0; i < plan_.num_planes; ++i) {
    const ComponentPlan& c = plan_.components[i];
    allocate_plane(i, {c.blocks_x.begin * c.block_size, c.blocks_x.end * c.block_size},
                   {c.blocks_y.begin * c.block_size, c.blocks_y.end * c.block_size}, plan_.plain);
  }
  if (engine == Engine::kAuto && header_.is_baseline()) {
    if (decode_fast(jpeg, false)) return;
    check(jpeg);
    if (decode_fast(jpeg, true)) return;
  }
  if (!libjpeg_) libjpeg_ = std::make_unique<LibjpegDecoder>();
  libjpeg_->decode(jpeg, header_, plan_, planes_.data());
}

void Decoder::allocate_plane(int index, Range xs, Range ys, bool by_rows) {
  Plane& plane = planes_[index];
  plane = {nullptr, round_up(xs.size(), kTile), xs.begin, ys.begin, by_rows};
  int lines = ys.size();
  if (!by_rows) {
    plane.stride = ptrdiff_t{Plane::kRows} * xs.size();
    lines = round_up(lines, kTile) / Plane::kRows;
  }
  std::vector<uint8_t>& bytes = plane_bytes_[index];
  const size_t need = static_cast<size_t>(plane.stride) * lines + kSlack;
  if (bytes.size() < need) bytes.resize(need);
  plane.data = bytes.data();
}

void Decoder::prepare_scan() {
  tables_.build(header_);
  scan_.tables = &tables_;
  scan_.num_components = header_.num_components;
  scan_.mcus_per_row = header_.mcus_per_row();
  scan_.mcus_x = plan_.mcus_x;
  scan_.mcus_y = plan_.mcus_y;
  for (int i = 0; i < header_.num_components; ++i) {
    const Component& c = header_.components[i];
    ComponentScan& scan = scan_.components[i];
    for (int k = 0; k < 64; ++k) {
      scan.quant[kNaturalOrder[k]] = static_cast<int16_t>(header_.quant[c.quant_table][k]);
    }
    scan.h = c.h;
    scan.v = c.v;
    scan.plan = plan_.components[i];
    scan.plane = planes_[i];
  }
}

bool Decoder::decode_fast(Bytes jpeg, bool checked) {
  if (!index_intervals(jpeg, header_, intervals_) && !checked) return false;
  prepare_scan();
  IntervalSource source(header_, plan_, intervals_, checked, unstuffed_);
  return kernels().decode_intervals(scan_, source);
}

void Decoder::resample(Size size, uint8_t* rgb) {
  const Kernels& kernel = kernels();
  const int stride = round_up(size.width, kTile);
  std::array<RowFilterInput, kMaxComponents> inputs;
  for (int i = 0; i < plan_.num_planes; ++i) {
    const FilterPair& filter = plan_.filters[plan_.components[i].filter];
    Range ys = filter.y.support();
    const int above = ys.begin - planes_[i].first_y;  // in the first strip: less than a block
    ys.begin -= above;
    std::vector<uint8_t>& rows = row_bytes_[i];
    const size_t need = static_cast<size_t>(stride) * round_up(ys.size(), kTile) + kSlack;
    if (need > kMaxScratch) throw Error("too large: this size of this box needs too much memory");
    if (rows.size() < need) rows.resize(need);
    kernel.resample_columns(planes_[i], filter.x, ys, rows.data(), stride);
    inputs[i] = {rows.data() + static_cast<ptrdiff_t>(above) * stride, stride, &filter.y};
  }
  kernel.resample_rows(inputs.data(), plan_.color, size.width, rgb);
}

void Decoder::convert(const Box& box, uint8_t* rgb) {
  std::array<PlainInput, kMaxComponents> inputs;
  for (int i = 0; i < plan_.num_planes; ++i) {
    const ComponentPlan& c = plan_.components[i];
    inputs[i] = {planes_[i], c.xs, c.ys, c.halved_x, c.halved_y, nullptr};
    if (!c.halved_x) continue;
    std::vector<uint8_t>& rows = row_bytes_[i];
    const size_t need = size_t{3} * plain_scratch_stride(box.width);
    if (rows.size() < need) rows.resize(need);
    inputs[i].scratch = rows.data();
  }
  kernels().convert(inputs.data(), plan_.color, box, rgb);
}

void Decoder::gather_raw(const uint8_t* pixels, Size image, const Box& box, Padding padding) {
  map_axis(box.left, box.width, image.width, padding, raw_x_);
  map_axis(box.top, box.height, image.height, padding, raw_y_);
  for (int channel = 0; channel < 3; ++channel) {
    allocate_plane(channel, {0, box.width}, {0, box.height}, false);
    const Plane& plane = planes_[channel];
    for (int y = 0; y < box.height; ++y) {
      const uint8_t* row = pixels + size_t{3} * image.width * std::max(raw_y_[y], 0) + channel;
      for (int x = 0; x < box.width; ++x) {
        const bool inside = raw_y_[y] >= 0 && raw_x_[x] >= 0;
        *plane.at(x, y) = inside ? row[size_t{3} * raw_x_[x]] : 0;
      }
    }
  }
}

void Decoder::resize_raw(const uint8_t* pixels, Size image, const Box& box, Padding padding,
                         bool flip, Size size, uint8_t* rgb) {
  require_output(size);
  constexpr int kFar = 1 << 24;  // keeps the sums of a hostile box in range
  if (std::abs(int64_t{box.left}) > kFar || std::abs(int64_t{box.top}) > kFar || box.width < 1 ||
      box.height < 1 || box.width > kMaxSide || box.height > kMaxSide ||
      int64_t{box.width} * box.height > kMaxPixels || image.width < 1 || image.height < 1 ||
      image.width > kMaxSide || image.height > kMaxSide ||
      int64_t{image.width} * image.height > kMaxPixels) {
    throw Error("bad box or image size");
  }
  if (padding == Padding::kNone) require_box_inside(box, image);
  const bool inside = box.left >= 0 && box.top >= 0 && box.left + box.width <= image.width &&
                      box.top + box.height <= image.height;
  if (inside && !flip && box.width == size.width && box.height == size.height) {
    for (int y = 0; y < size.height; ++y) {
      std::memcpy(rgb + size_t{3} * size.width * y,
                  pixels + size_t{3} * (size_t(image.width) * (box.top + y) + box.left),
                  size_t{3} * size.width);
    }
    return;
  }
  gather_raw(pixels, image, box, padding);
  plan_.color = ColorModel::kRgb;
  plan_.num_planes = 3;
  for (ComponentPlan& component : plan_.components) component.filter = 0;
  plan_.pixels_x.build({0, box.width}, size.width, flip);
  plan_.pixels_y.build({0, box.height}, size.height, false);
  plan_.filters[0].x.build(plan_.pixels_x, {1, 1, box.width, false});
  plan_.filters[0].y.build(plan_.pixels_y, {1, 1, box.height, false});
  resample(size, rgb);
}

}  // namespace fastselfie::jpeg
