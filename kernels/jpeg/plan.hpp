// What has to be decoded of an image for one output: the reduction of the inverse DCT, the filters,
// and the blocks that the filters reach. Both decoders (fast and libjpeg) follow the same plan.
#pragma once

#include "filter.hpp"
#include "header.hpp"

namespace fastselfie::jpeg {

// A rectangle of one component's samples, stored TRANSPOSED: sample (x, y) of the component is at
// data[(x - first_x) * stride + (y - first_y)]. An inverse DCT gives either orientation for
// nothing, and with this one both passes of the resize run along contiguous memory.
struct Plane {
  uint8_t* data = nullptr;
  int stride = 0;
  int first_x = 0, first_y = 0;
};

// Buffers are allocated with this many bytes to spare, so that vector loops may overrun a row.
constexpr size_t kSlack = 256;

struct ComponentPlan {
  int block_size = 8;        // samples a side that the inverse DCT gives: 8, 4, 2 or 1
  Range blocks_x, blocks_y;  // to be reconstructed; others are only entropy-decoded
  int filter = 0;            // index into Plan::filters; components sampled alike share
};

struct FilterPair {
  AxisFilter x, y;
};

struct Plan {
  ColorModel color = ColorModel::kGray;
  int num_planes = 0;
  int block_size = 8;  // of the component with the most samples
  std::array<ComponentPlan, kMaxComponents> components;
  std::array<FilterPair, kMaxComponents> filters;
  Range mcus_x, mcus_y;  // that hold those blocks
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
