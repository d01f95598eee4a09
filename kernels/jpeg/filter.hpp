// The resampling filter of one axis of one plane: antialiased bilinear, as Pillow computes it.
//
// Pillow decodes to full resolution, enlarges subsampled chroma, converts to RGB and then applies a
// triangle filter. All of these are linear, so they compose: the weights here go from the *stored*
// samples of a plane (subsampled, or reduced by a scaled IDCT) to the output, and equal Pillow's
// chain up to rounding. Hence chroma is sited right by construction, and is never enlarged.
#pragma once

#include "common.hpp"

namespace fastselfie::jpeg {

// How full-resolution pixel x of an axis is made from the samples of a plane.
struct Sampling {
  int numerator = 1, denominator = 1;  // samples a pixel
  int length = 0;                      // samples in the plane: indices are clamped to it
  // Linearly, between the centres of samples; else by repetition. libjpeg's "fancy upsampling" of
  // 2:1 subsampled planes is the former (weights 3/4 and 1/4), its other enlargements are the
  // latter.
  bool interpolated = false;
};

constexpr int kWeightBits = 14;  // the weights of an output sum to exactly 1 << 14

// Which pixels of an axis make each output, and their shares.
class PixelFilter {
 public:
  // Output i of `out_length` covers its share of the box [begin, begin + length) of the image.
  // `mirrored` reverses the outputs: a horizontal flip that costs nothing.
  void build(Range box, int out_length, bool mirrored);

  struct Output {
    int begin, count;  // its pixels
    float normalizer;  // what their weights are multiplied by, to sum to 1 << kWeightBits
  };
  const std::vector<Output>& outputs() const { return outputs_; }
  const float* weights(size_t i) const { return &weights_[i * capacity_]; }
  int capacity() const { return capacity_; }  // the most pixels of an output
  Range box() const { return box_; }

 private:
  Range box_;
  int capacity_ = 0;
  std::vector<Output> outputs_;
  std::vector<float> weights_;
};

class AxisFilter {
 public:
  // A weight of 16 bits, twice: processors repeat 32 bits of memory in a vector without a shuffle.
  using Weight = uint32_t;

  void build(const PixelFilter& pixels, const Sampling& sampling);

  int out_length() const { return static_cast<int>(starts_.size()); }
  Range support() const { return support_; }  // the samples read, over all outputs
  // Output i is the sum of `count` samples from `start` on, each times its weight.
  int start(int i) const { return starts_[i]; }
  int count(int i) const { return counts_[i]; }
  const Weight* weights(int i) const { return &weights_[static_cast<size_t>(i) * capacity_]; }

  // The one or two samples that make a pixel, first <= second, and the share of the first.
  struct Source {
    int first, second;
    float share;
  };

 private:
  int capacity_ = 0;  // room for the weights of one output
  Range support_;
  std::vector<int> starts_, counts_;
  std::vector<Weight> weights_;
  std::vector<Source> sources_;  // scratch of build(): of each pixel in the box
  std::vector<float> exact_;     // scratch: of one output
};

}  // namespace fastselfie::jpeg
