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

class AxisFilter {
 public:
  // Output i of `out_length` covers its share of the box [begin, begin + length) of the image.
  // `mirrored` reverses the outputs: a horizontal flip that costs nothing.
  void build(Range box, int out_length, const Sampling& sampling, bool mirrored);

  int out_length() const { return static_cast<int>(starts_.size()); }
  int taps() const { return taps_; }
  Range support() const { return support_; }  // the samples read, over all outputs
  int start(int i) const { return starts_[i]; }
  const int16_t* weights(int i) const { return &weights_[static_cast<size_t>(i) * taps_]; }

  static constexpr int kWeightBits = 14;  // each output's weights sum to exactly 1 << 14

  // The one or two samples that make a pixel, first <= second, and the share of the first.
  struct Source {
    int first, second;
    float share;
  };

 private:
  void quantize(const float* weights, int count, int16_t* out) const;

  int taps_ = 0;  // the same for every output, padded with zeros: loops of one length vectorise
  Range support_;
  std::vector<int> starts_;
  std::vector<int16_t> weights_;
  std::vector<Source> sources_;  // scratch of build(): of each pixel in the box
  std::vector<float> exact_;
  std::vector<int> counts_;
};

}  // namespace fastselfie::jpeg
