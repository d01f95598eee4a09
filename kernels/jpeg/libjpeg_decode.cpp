// The reference decoder: libjpeg's raw planes, cut out in the planes' order. See libjpeg.hpp.
#include <algorithm>

#include "libjpeg.hpp"
#include "libjpeg_session.hpp"

namespace fastselfie::jpeg {

struct LibjpegDecoder::State {
  LibjpegErrors errors;
  jpeg_decompress_struct info{};
  std::vector<Bytes> intervals;
  std::vector<uint8_t> cut;
  std::vector<uint8_t> strip;  // one row of MCUs, all components
  std::vector<JSAMPROW> rows;  // pointers into it
  JSAMPARRAY row_arrays[kMaxComponents] = {};

  void prepare_strip();
  void copy_strip(int strip_index, const Cut& cut, const Header& header, const Plan& plan,
                  Plane* planes);
};

LibjpegDecoder::LibjpegDecoder() : state_(std::make_unique<State>()) {}

LibjpegDecoder::~LibjpegDecoder() = default;

void LibjpegDecoder::State::prepare_strip() {
  size_t samples = 0, lines = 0;
  for (int i = 0; i < info.num_components; ++i) {
    const jpeg_component_info& c = info.comp_info[i];
    const size_t width = round_up(c.width_in_blocks, c.h_samp_factor) * c.DCT_scaled_size;
    samples += width * c.v_samp_factor * c.DCT_scaled_size;
    lines += c.v_samp_factor * c.DCT_scaled_size;
  }
  strip.resize(samples);
  rows.resize(lines);
  uint8_t* sample = strip.data();
  JSAMPROW* row = rows.data();
  for (int i = 0; i < info.num_components; ++i) {
    const jpeg_component_info& c = info.comp_info[i];
    const size_t width = round_up(c.width_in_blocks, c.h_samp_factor) * c.DCT_scaled_size;
    row_arrays[i] = row;
    for (int y = 0; y < c.v_samp_factor * c.DCT_scaled_size; ++y, sample += width) *row++ = sample;
  }
}

void LibjpegDecoder::State::copy_strip(int strip_index, const Cut& cut, const Header& header,
                                       const Plan& plan, Plane* planes) {
  for (int i = 0; i < header.num_components; ++i) {
    const ComponentPlan& component = plan.components[i];
    const Component& c = header.components[i];
    const int size = component.block_size;
    // libjpeg's own factor: of a lone component it may read several rows of blocks at once.
    const int lines = info.comp_info[i].v_samp_factor * size;
    const int first = cut.mcu_y * c.v * size + strip_index * lines;
    const int strip_x = cut.mcu_x * c.h * size;
    const int y_begin = std::max(first, component.blocks_y.begin * size);
    const int y_end = std::min(first + lines, component.blocks_y.end * size);
    const Plane& plane = planes[i];
    const int x_begin = component.blocks_x.begin * size, x_end = component.blocks_x.end * size;
    const ptrdiff_t step = plane.by_rows ? 1 : Plane::kRows;
    for (int y = y_begin; y < y_end; ++y) {
      const uint8_t* const row = row_arrays[i][y - first] - strip_x;
      uint8_t* out = plane.at(x_begin, y);
      for (int x = x_begin; x < x_end; ++x, out += step) *out = row[x];
    }
  }
}

void LibjpegDecoder::decode(Bytes jpeg, const Header& header, const Plan& plan, Plane* planes) {
  State& s = *state_;
  Cut cut{0, 0, header.size};
  // A file that cannot be cut is decoded from its top; to its end where only that shows damage.
  int mcu_rows = header.is_baseline() ? header.mcu_rows() : plan.mcus_y.end;
  if (cut_grid(header) && index_intervals(jpeg, header, s.intervals)) {
    cut = cut_intervals(jpeg, header, s.intervals, plan.mcus_x, plan.mcus_y, s.cut);
    jpeg = {s.cut.data(), s.cut.size()};
    mcu_rows = plan.mcus_y.end - cut.mcu_y;
  }
  jpeg_decompress_struct* const info = &s.info;
  // One that was merely aborted would lend its tables to a next image that lacks them.
  struct Destroy {
    jpeg_decompress_struct* info;
    ~Destroy() { jpeg_destroy_decompress(info); }
  } destroy{info};

  *info = {};
  info->err = s.errors.manager();
  s.errors.begin(jpeg);
  s.errors.guarded([&] {
    jpeg_create_decompress(info);
    info->progress = s.errors.progress();
    jpeg_mem_src(info, jpeg.data, static_cast<unsigned long>(jpeg.size));
    jpeg_read_header(info, TRUE);
    // Raw planes are wanted: no colour conversion, no enlarging of chroma.
    info->raw_data_out = TRUE;
    info->out_color_space = info->jpeg_color_space;
    info->dct_method = JDCT_ISLOW;
    info->scale_num = plan.block_size;
    info->scale_denom = 8;
    jpeg_start_decompress(info);
  });
  if (jpeg_has_multiple_scans(info)) s.errors.require_complete(*info);
  // What copy_strip() relies on. libjpeg parses the bytes again, and they may have changed since if
  // they are a file that somebody writes to.
  bool as_planned = info->num_components == header.num_components &&
                    static_cast<int>(info->image_width) == cut.size.width &&
                    static_cast<int>(info->image_height) == cut.size.height;
  for (int i = 0; as_planned && i < header.num_components; ++i) {
    const jpeg_component_info& c = info->comp_info[i];
    const bool alone = header.num_components == 1;  // then the factors mean nothing
    as_planned = c.DCT_scaled_size == plan.components[i].block_size &&
                 (alone || (c.h_samp_factor == header.components[i].h &&
                            c.v_samp_factor == header.components[i].v));
  }
  if (!as_planned) throw Error("libjpeg reads this file otherwise than expected");
  s.prepare_strip();
  const int lines = info->max_v_samp_factor * info->min_DCT_scaled_size;
  for (int row = 0; info->output_scanline < info->output_height && row < mcu_rows; ++row) {
    s.errors.guarded([&] { jpeg_read_raw_data(info, s.row_arrays, lines); });
    s.copy_strip(row, cut, header, plan, planes);
  }
}

}  // namespace fastselfie::jpeg
