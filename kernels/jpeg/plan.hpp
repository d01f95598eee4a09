// What has to be decoded of an image for one output: the reduction of the inverse DCT, the filters,
// and the blocks that the filters reach. Both decoders (fast and libjpeg) follow the same plan.
#pragma once

#include "filter.hpp"
#include "header.hpp"

namespace fastselfie::jpeg {

// A rectangle of one component's samples. Either by rows; or in strips of kRows rows, each by
// columns: both passes of the resize then run along contiguous memory, and blocks that follow each
// other fill the same cache lines. An inverse DCT gives either order.
struct Plane {
  static constexpr int kRows = 16;

  uint8_t* data = nullptr;
  ptrdiff_t stride = 0;  // from a row, or a strip, to the next
  int first_x = 0, first_y = 0;
  bool by_rows = false;

  uint8_t* at(int x, int y) const {
    const ptrdiff_t column = x - first_x, row = y - first_y;
    return by_rows ? data + row * stride + column
                   : data + row / kRows * stride + column * kRows + row % kRows;
  }
  // From a row of a block, or a column of it, to the next.
  ptrdiff_t step() const { return by_rows ? stride : kRows; }
};

// Buffers are allocated with this many bytes to spare, so that vector loops may overrun a row.
constexpr size_t kSlack = 256;

struct ComponentPlan {
  int block_size = 8;        // samples a side that the inverse DCT gives: 8, 4, 2 or 1
  Range blocks_x, blocks_y;  // to be reconstructed; others are only entropy-decoded
  int filter = 0;            // index into Plan::filters; components sampled alike share
  Range xs, ys;              // the samples that are read
  // In a plain plan: whether an axis has one sample for two pixels.
  bool halved_x = false, halved_y = false;
};

struct FilterPair {
  AxisFilter x, y;
};

struct Plan {
  ColorModel color = ColorModel::kGray;
  int num_planes = 0;
  int block_size = 8;  // of the component with the most samples
  std::array<ComponentPlan, kMaxComponents> components;
  PixelFilter pixels_x, pixels_y;  // of which the filters of all components are made
  std::array<FilterPair, kMaxComponents> filters;
  Range mcus_x, mcus_y;  // that hold those blocks
  // Pixels come out as the image has them: only chroma is enlarged, by libjpeg's "fancy upsampling".
  // There are no filters, and planes are by rows.
  bool plain = false;
};

// The largest reduction (1, 2, 4 or 8 samples a block side) at which the planes still cover the
// output with half as much again to spare.
int reduced_block_size(Size box, Size output);

// The block size of one component when the largest-sampled one has `block_size`: libjpeg's rule,
// which reduces subsampled chroma less.
int component_block_size(const Header& header, const Component& component, int block_size);

// Reuses the memory of `plan`. `box` must lie inside the image.
void make_plan(const Header& header, const Box& box, Size output, bool flip, Plan& plan);

// A plan for whole planes inside `box`, without filters: what tests look at.
void make_plane_plan(const Header& header, const Box& box, int block_size, Plan& plan);

}  // namespace fastselfie::jpeg
