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

}  // namespace

void AxisFilter::build(Range box, int out_length, const Sampling& sampling, bool mirrored) {
  const double scale = static_cast<double>(box.size()) / out_length;
  const double half_width = std::max(scale, 1.0);  // of the triangle, in pixels
  const float slope = static_cast<float>(1.0 / half_width);

  // An upper bound of the samples one output touches; the true maximum is found on the way.
  const int pixels = 2 * static_cast<int>(std::ceil(half_width)) + 1;
  const int capacity =
      static_cast<int>(int64_t{pixels} * sampling.numerator / sampling.denominator) + 3;
  sources_.resize(box.size());
  for (int x = box.begin; x < box.end; ++x) sources_[x - box.begin] = source_of(x, sampling);
  starts_.resize(out_length);
  counts_.resize(out_length);
  exact_.assign(static_cast<size_t>(out_length) * capacity, 0.0f);
  support_ = {sampling.length, 0};
  taps_ = 1;

  for (int i = 0; i < out_length; ++i) {
    const double center = box.begin + (i + 0.5) * scale;
    const int begin = std::max(static_cast<int>(center - half_width + 0.5), box.begin);
    const int end = std::min(static_cast<int>(center + half_width + 0.5), box.end);
    const int out = mirrored ? out_length - 1 - i : i;
    float* const weights = &exact_[static_cast<size_t>(out) * capacity];
    const Source* const sources = &sources_[begin - box.begin];
    const int start = sources[0].first;
    const float offset = static_cast<float>(begin + 0.5 - center);
    float total = 0.0f;
    for (int x = 0; x < end - begin; ++x) {
      const float weight = std::max(0.0f, 1.0f - std::abs(offset + x) * slope);
      const Source source = sources[x];
      weights[source.first - start] += weight * source.share;
      weights[source.second - start] += weight * (1.0f - source.share);
      total += weight;
    }
    const int count = sources[end - begin - 1].second + 1 - start;
    const float normalizer = (1 << kWeightBits) / total;
    for (int k = 0; k < count; ++k) weights[k] *= normalizer;
    starts_[out] = start;
    counts_[out] = count;
    taps_ = std::max(taps_, count);
    support_ = {std::min(support_.begin, start), std::max(support_.end, start + count)};
  }

  weights_.assign(static_cast<size_t>(out_length) * taps_, 0);
  for (int i = 0; i < out_length; ++i) {
    // Zero padding goes to the left where the right would leave the samples that are decoded.
    const int shift = std::max(0, starts_[i] + taps_ - support_.end);
    starts_[i] -= shift;
    quantize(&exact_[static_cast<size_t>(i) * capacity], counts_[i],
             &weights_[static_cast<size_t>(i) * taps_ + shift]);
  }
}

void AxisFilter::quantize(const float* weights, int count, int16_t* out) const {
  int remainder = 1 << kWeightBits, largest = 0;
  for (int k = 0; k < count; ++k) {
    out[k] = static_cast<int16_t>(weights[k] + 0.5f);
    remainder -= out[k];
    if (out[k] > out[largest]) largest = k;
  }
  out[largest] = static_cast<int16_t>(out[largest] + remainder);  // a flat area stays flat
}

}  // namespace fastselfie::jpeg
