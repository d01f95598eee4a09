// libjpeg's reading of coefficients: see coefficients.hpp.
#include "coefficients.hpp"

#include <algorithm>

namespace fastselfie::jpeg {

CoefficientReader::CoefficientReader(Bytes jpeg) {
  info_.err = errors_.manager();
  errors_.begin(jpeg);
  try {
    errors_.guarded([&] {
      jpeg_create_decompress(&info_);
      info_.progress = errors_.progress();
      jpeg_mem_src(&info_, jpeg.data, static_cast<unsigned long>(jpeg.size));
      jpeg_read_header(&info_, TRUE);
    });
  } catch (...) {  // a destructor is not run where the constructor has failed
    jpeg_destroy_decompress(&info_);
    throw;
  }
}

void CoefficientReader::read() {
  errors_.guarded([&] { arrays_ = jpeg_read_coefficients(&info_); });
  errors_.require_complete(info_);
}

void CoefficientReader::require_same_blocks(const Header& header) const {
  // libjpeg has parsed the bytes again, and they may have changed since if they are a file that
  // somebody writes to.
  bool as_expected = info_.num_components == header.num_components;
  for (int i = 0; as_expected && i < header.num_components; ++i) {
    const Size blocks = header.component_blocks(header.components[i]);
    as_expected = static_cast<int>(info_.comp_info[i].width_in_blocks) == blocks.width &&
                  static_cast<int>(info_.comp_info[i].height_in_blocks) == blocks.height;
  }
  if (!as_expected) throw Error("libjpeg reads this file otherwise than expected");
}

JBLOCKARRAY CoefficientReader::rows(int component, int first, int count) {
  JBLOCKARRAY rows = nullptr;
  errors_.guarded([&] {
    rows = info_.mem->access_virt_barray(reinterpret_cast<j_common_ptr>(&info_), arrays_[component],
                                         first, count, FALSE);
  });
  return rows;
}

std::vector<Coefficients> read_coefficients(Bytes jpeg) {
  const Header header = parse_header(jpeg);
  CoefficientReader reader(jpeg);
  reader.read();
  reader.require_same_blocks(header);
  std::vector<Coefficients> result(header.num_components);
  for (int i = 0; i < header.num_components; ++i) {
    const Size blocks = header.component_blocks(header.components[i]);
    result[i] = {blocks.height, blocks.width, {}};
    result[i].values.reserve(size_t{64} * blocks.height * blocks.width);
    for (int y = 0; y < blocks.height; ++y) {
      const JCOEF* const row = reader.rows(i, y, 1)[0][0];
      result[i].values.insert(result[i].values.end(), row, row + size_t{64} * blocks.width);
    }
  }
  return result;
}

}  // namespace fastselfie::jpeg
