// The resampling filter of one axis: see filter.hpp.
#include "filter.hpp"

#include <algorithm>
#include <cmath>

namespace fastselfie::jpeg {
namespace {

AxisFilter::Source source_of(int x, const Sampling& s) {
  const int last = s.length - 1;
  if (!s.interpolated) {
    const int i = std::min(static_cast<int>(int64_t{x} * s.numerator / s.denominator), last);
    return {i, i, 1.0f};
  }
  // The centre of pixel x lies between the centres of two samples.
  const float position = (x + 0.5f) * s.numerator / s.denominator - 0.5f;
  const int i = static_cast<int>(std::floor(position));
  return {std::clamp(i, 0, last), std::min(i + 1, last), 1.0f - (position - i)};
}

// Rounds `count` weights, which sum to about 1 / normalizer. What is missing goes to the largest, so
// that a flat area stays flat.
void quantize(const float* weights, int count, float normalizer, AxisFilter::Weight* out) {
  constexpr AxisFilter::Weight kTwice = 0x10001;
  int remainder = 1 << kWeightBits, largest = -1, at = 0;
  for (int k = 0; k < count; ++k) {
    const int weight = static_cast<int>(weights[k] * normalizer + 0.5f);
    out[k] = static_cast<uint32_t>(weight) * kTwice;
    remainder -= weight;
    if (weight > largest) {
      largest = weight;
      at = k;
    }
  }
  out[at] += static_cast<uint32_t>(remainder) * kTwice;
}

}  // namespace

void PixelFilter::build(Range box, int out_length, bool mirrored) {
  const double scale = static_cast<double>(box.size()) / out_length;
  const double half_width = std::max(scale, 1.0);  // of the triangle, in pixels
  const float slope = static_cast<float>(1.0 / half_width);
  box_ = box;
  capacity_ = 2 * static_cast<int>(std::ceil(half_width)) + 1;
  outputs_.resize(out_length);
  weights_.resize(static_cast<size_t>(out_length) * capacity_);
  for (int i = 0; i < out_length; ++i) {
    const double center = box.begin + (i + 0.5) * scale;
    const int begin = std::max(static_cast<int>(center - half_width + 0.5), box.begin);
    const int end = std::min(static_cast<int>(center + half_width + 0.5), box.end);
    const float offset = static_cast<float>(begin + 0.5 - center);
    const int out = mirrored ? out_length - 1 - i : i;
    float* const weights = &weights_[static_cast<size_t>(out) * capacity_];
    float total = 0.0f;
    for (int x = 0; x < end - begin; ++x) {
      total += weights[x] = std::max(0.0f, 1.0f - std::abs(offset + x) * slope);
    }
    outputs_[out] = {begin, end - begin, (1 << kWeightBits) / total};
  }
}

void AxisFilter::build(const PixelFilter& pixels, const Sampling& sampling) {
  const Range box = pixels.box();
  // Where samples are pixels, so are their weights.
  const bool direct = !sampling.interpolated && sampling.numerator == sampling.denominator &&
                      box.end <= sampling.length;
  capacity_ = pixels.capacity();
  if (!direct) {
    capacity_ =
        static_cast<int>(int64_t{capacity_} * sampling.numerator / sampling.denominator) + 3;
    sources_.resize(box.size());
    for (int x = box.begin; x < box.end; ++x) sources_[x - box.begin] = source_of(x, sampling);
    exact_.resize(capacity_);
  }
  const size_t outputs = pixels.outputs().size();
  starts_.resize(outputs);
  counts_.resize(outputs);
  weights_.resize(outputs * capacity_);
  support_ = {sampling.length, 0};
  for (size_t i = 0; i < outputs; ++i) {
    const auto [begin, length, normalizer] = pixels.outputs()[i];
    const float* weights = pixels.weights(i);
    int start = begin, count = length;
    if (!direct) {
      const Source* const sources = &sources_[begin - box.begin];
      start = sources[0].first;
      count = sources[length - 1].second + 1 - start;
      int begun = 0;  // weights; the sources of pixels ascend
      const auto add = [&](int sample, float weight) {
        while (begun <= sample - start) exact_[begun++] = 0.0f;
        exact_[sample - start] += weight;
      };
      for (int x = 0; x < length; ++x) {
        add(sources[x].first, weights[x] * sources[x].share);
        add(sources[x].second, weights[x] * (1.0f - sources[x].share));
      }
      weights = exact_.data();
    }
    starts_[i] = start;
    counts_[i] = count;
    quantize(weights, count, normalizer, &weights_[i * capacity_]);
    support_ = {std::min(support_.begin, start), std::max(support_.end, start + count)};
  }
}

}  // namespace fastselfie::jpeg
