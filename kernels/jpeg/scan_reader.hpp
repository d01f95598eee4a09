// The reading of a baseline scan as symbols, straight from the bits.
#pragma once

#include "tokens.hpp"

namespace fastselfie::jpeg {

// The blocks of an MCU in the order of an interleaved scan.
class BlockOrder {
 public:
  explicit BlockOrder(const Header& header) : header_(header) {
    for (int i = 0; i < header.num_components; ++i) {
      sizes_[i] = header.component_blocks(header.components[i]);
    }
  }

  // Calls on_block(component, x, y), or on_filler(component) where that is outside of the image.
  template <typename OnBlock, typename OnFiller>
  void visit(int mcu_x, int mcu_y, OnBlock&& on_block, OnFiller&& on_filler) const {
    for (int i = 0; i < header_.num_components; ++i) {
      const int h = header_.components[i].h, v = header_.components[i].v;
      for (int y = mcu_y * v; y < mcu_y * v + v; ++y) {
        for (int x = mcu_x * h; x < mcu_x * h + h; ++x) {
          if (x < sizes_[i].width && y < sizes_[i].height) {
            on_block(i, x, y);
          } else {
            on_filler(i);
          }
        }
      }
    }
  }

 private:
  const Header& header_;
  std::array<Size, kMaxComponents> sizes_;
};

// Needs header.is_baseline(). Throws Error where a pixel is lost. Finds more than libjpeg, which says
// nothing of a run of zeros beyond the block's end; what may follow the scan is not looked at.
void read_scan(Bytes jpeg, const Header& header, Tokens& tokens);

}  // namespace fastselfie::jpeg
