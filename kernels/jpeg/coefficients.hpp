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

// One file in libjpeg's hands. `jpeg` must outlive it, `header` is what parse_header() says of it.
class CoefficientReader {
 public:
  CoefficientReader(Bytes jpeg, const Header& header);  // reads the header
  ~CoefficientReader() { jpeg_destroy_decompress(&info_); }
  CoefficientReader(const CoefficientReader&) = delete;
  CoefficientReader& operator=(const CoefficientReader&) = delete;

  const jpeg_decompress_struct& info() const { return info_; }

  // All scans, up to the end of the image. Afterwards info() and the header agree on every block.
  void read();

  // Rows [first, first + count) of a component's blocks, at most as many as an MCU is high.
  JBLOCKARRAY rows(int component, int first, int count);

 private:
  const Header& header_;
  LibjpegErrors errors_;
  jpeg_decompress_struct info_{};
  jvirt_barray_ptr* arrays_ = nullptr;
};

}  // namespace fastselfie::jpeg
