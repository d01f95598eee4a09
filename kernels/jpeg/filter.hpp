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
//
// Filters are built without a branch that depends on an output, in loops over all outputs that
// compilers vectorise. So arrays of weights are by tap: `taps` times one weight of each output, zero
// behind the last that the output has.
class PixelFilter {
 public:
  // Output i of `out_length` covers its share of the box [begin, begin + length) of the image.
  // `mirrored` reverses the outputs: a horizontal flip that costs nothing.
  void build(Range box, int out_length, bool mirrored);

  Range box() const { return box_; }
  int out_length() const { return static_cast<int>(begins_.size()); }
  int taps() const { return taps_; }  // the most pixels of an output
  const int* begins() const { return begins_.data(); }  // the first pixel of each output
  const int* counts() const { return counts_.data(); }  // its pixels
  const float* weights() const { return weights_.data(); }
  // What the weights of each output are multiplied by, to sum to 1 << kWeightBits.
  const float* normalizers() const { return normalizers_.data(); }

 private:
  Range box_;
  int taps_ = 0;
  std::vector<int> begins_, counts_;
  std::vector<float> weights_, normalizers_;
  std::vector<float> offsets_;  // scratch: of the first pixel of each output from its centre
};

class AxisFilter {
 public:
  // A weight of 16 bits, twice: processors repeat 32 bits of memory in a vector without a shuffle.
  using Weight = uint32_t;

  void build(const PixelFilter& pixels, const Sampling& sampling);

  int out_length() const { return static_cast<int>(starts_.size()); }
  Range support() const { return support_; }  // the samples read, over all outputs
  // Output i is the sum of `count` samples from `start` on, each times its weight. Its weights are
  // out_length() apart.
  int start(int i) const { return starts_[i]; }
  int count(int i) const { return counts_[i]; }
  const Weight* weights(int i) const { return &weights_[i]; }

  // The one or two samples that make a pixel, first <= second, and the share of the first.
  struct Source {
    int first, second;
    float share;
  };

 private:
  void add_samples(const PixelFilter& pixels, const Sampling& sampling);
  void quantize(const float* exact, const float* normalizers);

  int taps_ = 0;  // the most samples of an output
  Range support_;
  std::vector<int> starts_, counts_;
  std::vector<Weight> weights_;

  std::vector<Source> sources_;  // scratch of build(): of each pixel in the box, and behind it
  std::vector<float> exact_;     // scratch: the weights before they are rounded
};

}  // namespace fastselfie::jpeg
