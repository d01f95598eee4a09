// The quantised DCT coefficients of any JPEG that libjpeg reads.
#pragma once

#include "header.hpp"
#include "libjpeg_session.hpp"

namespace fastselfie::jpeg {

// Blocks in row order, natural order within.
struct Coefficients {
  int block_rows = 0, block_columns = 0;
  std::vector<int16_t> values;
};
std::vector<Coefficients> read_coefficients(Bytes jpeg);

// One file in libjpeg's hands. `jpeg` must outlive it.
class CoefficientReader {
 public:
  explicit CoefficientReader(Bytes jpeg);  // reads the header
  ~CoefficientReader() { jpeg_destroy_decompress(&info_); }
  CoefficientReader(const CoefficientReader&) = delete;
  CoefficientReader& operator=(const CoefficientReader&) = delete;

  const jpeg_decompress_struct& info() const { return info_; }

  // All scans, up to the end of the image. Throws LostPixels where a part of it is missing.
  void read();

  // Once read: that info() and what parse_header() said agree on every block.
  void require_same_blocks(const Header& header) const;

  // Rows [first, first + count) of a component's blocks, at most as many as an MCU is high.
  JBLOCKARRAY rows(int component, int first, int count);

 private:
  LibjpegErrors errors_;
  jpeg_decompress_struct info_{};
  jvirt_barray_ptr* arrays_ = nullptr;
};

}  // namespace fastselfie::jpeg
