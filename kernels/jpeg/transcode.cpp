// The lossless transcode and the reading of coefficients: see libjpeg.hpp.
#include <algorithm>
#include <cstdlib>

#include "libjpeg.hpp"
#include "libjpeg_session.hpp"

namespace fastselfie::jpeg {
namespace {

class Source {
 public:
  explicit Source(LibjpegErrors& errors) {
    info_.err = errors.manager();
    errors.guarded([&] { jpeg_create_decompress(&info_); });
    info_.progress = errors.progress();
  }
  ~Source() { jpeg_destroy_decompress(&info_); }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  jpeg_decompress_struct* operator->() { return &info_; }
  jpeg_decompress_struct* get() { return &info_; }

  // To be called inside guarded().
  jvirt_barray_ptr* read(Bytes jpeg) {
    jpeg_mem_src(&info_, jpeg.data, static_cast<unsigned long>(jpeg.size));
    jpeg_read_header(&info_, TRUE);
    return jpeg_read_coefficients(&info_);
  }

 private:
  jpeg_decompress_struct info_{};
};

class Sink {
 public:
  explicit Sink(LibjpegErrors& errors, size_t expected_size) : own_(expected_size) {
    info_.err = errors.manager();
    bytes_ = own_.data();
    size_ = static_cast<unsigned long>(own_.size());
    errors.guarded([&] {
      jpeg_create_compress(&info_);
      jpeg_mem_dest(&info_, &bytes_, &size_);
    });
  }
  ~Sink() {
    jpeg_destroy_compress(&info_);
    if (bytes_ != own_.data()) std::free(bytes_);
  }
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;

  jpeg_compress_struct* operator->() { return &info_; }
  jpeg_compress_struct* get() { return &info_; }
  std::vector<uint8_t> bytes() const { return {bytes_, bytes_ + size_}; }

 private:
  jpeg_compress_struct info_{};
  // A first buffer of libjpeg's own would be freed as it grows, but `bytes_` moves on only at the
  // end: an error in between would leave it dangling.
  std::vector<uint8_t> own_;
  unsigned char* bytes_ = nullptr;
  unsigned long size_ = 0;
};

// 64 pixels: a crop then decodes 32 pixels too many at either side on average, and the markers cost
// less than the optimised tables save.
int default_restart_mcus(const Header& header) { return std::max(1, 64 / header.mcu_width()); }

int largest_divisor(int n, int at_most) {
  int divisor = std::min(n, at_most);
  while (n % divisor != 0) --divisor;
  return divisor;
}

void require_baseline_possible(const Header& header) {
  if (header.color == ColorModel::kRgb) throw Error("unsupported: an RGB JPEG");
  for (int i = 0; i < header.num_components; ++i) {
    const int table = header.components[i].quant_table;
    const auto& steps = header.quant[table];
    if (std::any_of(steps.begin(), steps.end(), [](int step) { return step > 255; })) {
      throw Error("unsupported: 16-bit quantisation steps are not baseline");
    }
  }
}

}  // namespace

std::vector<uint8_t> transcode(Bytes jpeg, int restart_mcus) {
  const Header header = parse_header(jpeg);
  if (restart_mcus == 0) restart_mcus = default_restart_mcus(header);
  if (restart_mcus < 1) throw Error("restart_mcus must be at least 1");
  require_baseline_possible(header);
  LibjpegErrors errors;
  Source source(errors);
  Sink sink(errors, jpeg.size + 4096);
  errors.guarded([&] {
    jvirt_barray_ptr* const coefficients = source.read(jpeg);
    jpeg_copy_critical_parameters(source.get(), sink.get());
    // A lone component is never interleaved, so its factors mean nothing; 1x1 confuses nobody.
    if (sink->num_components == 1) {
      sink->comp_info[0].h_samp_factor = sink->comp_info[0].v_samp_factor = 1;
    }
    sink->optimize_coding = TRUE;
    sink->restart_interval = largest_divisor(header.mcus_per_row(), restart_mcus);
    jpeg_write_coefficients(sink.get(), coefficients);
    jpeg_finish_compress(sink.get());
    jpeg_finish_decompress(source.get());
  });
  return sink.bytes();
}

std::vector<Coefficients> read_coefficients(Bytes jpeg) {
  const Header header = parse_header(jpeg);
  LibjpegErrors errors;
  Source source(errors);
  std::vector<Coefficients> result(header.num_components);
  jvirt_barray_ptr* arrays = nullptr;
  errors.guarded([&] { arrays = source.read(jpeg); });
  if (source->num_components != header.num_components) {
    throw Error("libjpeg reads this file otherwise than expected");
  }
  for (int i = 0; i < header.num_components; ++i) {
    result[i].block_rows = static_cast<int>(source->comp_info[i].height_in_blocks);
    result[i].block_columns = static_cast<int>(source->comp_info[i].width_in_blocks);
    result[i].values.resize(size_t{64} * result[i].block_rows * result[i].block_columns);
  }
  errors.guarded([&] {
    for (int i = 0; i < header.num_components; ++i) {
      int16_t* out = result[i].values.data();
      for (int row = 0; row < result[i].block_rows; ++row) {
        auto info = reinterpret_cast<j_common_ptr>(source.get());
        JBLOCKARRAY rows = source->mem->access_virt_barray(info, arrays[i], row, 1, FALSE);
        out = std::copy_n(&rows[0][0][0], size_t{64} * result[i].block_columns, out);
      }
    }
  });
  return result;
}

}  // namespace fastselfie::jpeg
