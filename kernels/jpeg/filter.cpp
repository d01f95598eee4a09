// The resampling filter of one axis: see filter.hpp.
#include "filter.hpp"

#include <algorithm>
#include <cmath>

namespace fastselfie::jpeg {
namespace {

// The sources of the pixels from `begin` on.
void find_sources(int begin, const Sampling& s, std::vector<AxisFilter::Source>& sources) {
  const int last = s.length - 1, count = static_cast<int>(sources.size());
  if (!s.interpolated) {
    for (int k = 0; k < count; ++k) {
      const int64_t i = int64_t{begin + k} * s.numerator / s.denominator;
      const int sample = static_cast<int>(std::min<int64_t>(i, last));
      sources[k] = {sample, sample, 1.0f};
    }
    return;
  }
  const float numerator = s.numerator, denominator = s.denominator;
  for (int k = 0; k < count; ++k) {
    // The centre of a pixel lies between the centres of two samples.
    const float position = (begin + k + 0.5f) * numerator / denominator - 0.5f;
    int i = static_cast<int>(position);
    i -= position < i;  // rounded down
    sources[k] = {std::clamp(i, 0, last), std::min(i + 1, last), 1.0f - (position - i)};
  }
}

}  // namespace

void PixelFilter::build(Range box, int out_length, bool mirrored) {
  const double scale = static_cast<double>(box.size()) / out_length;
  const double half_width = std::max(scale, 1.0);  // of the triangle, in pixels
  const float slope = static_cast<float>(1.0 / half_width);
  box_ = box;
  begins_.resize(out_length);
  counts_.resize(out_length);
  offsets_.resize(out_length);
  taps_ = 0;
  for (int i = 0; i < out_length; ++i) {
    const double center = box.begin + ((mirrored ? out_length - 1 - i : i) + 0.5) * scale;
    const int begin = std::max(static_cast<int>(center - half_width + 0.5), box.begin);
    const int end = std::min(static_cast<int>(center + half_width + 0.5), box.end);
    begins_[i] = begin;
    counts_[i] = end - begin;
    offsets_[i] = static_cast<float>(begin + 0.5 - center);
    taps_ = std::max(taps_, end - begin);
  }
  weights_.resize(static_cast<size_t>(taps_) * out_length);
  normalizers_.assign(out_length, 0.0f);
  for (int k = 0; k < taps_; ++k) {
    float* const weights = &weights_[static_cast<size_t>(k) * out_length];
    for (int i = 0; i < out_length; ++i) {
      const float weight = std::max(0.0f, 1.0f - std::abs(offsets_[i] + k) * slope);
      normalizers_[i] += weights[i] = k < counts_[i] ? weight : 0.0f;
    }
  }
  for (float& total : normalizers_) total = (1 << kWeightBits) / total;
}

void AxisFilter::build(const PixelFilter& pixels, const Sampling& sampling) {
  const Range box = pixels.box();
  starts_.assign(pixels.begins(), pixels.begins() + pixels.out_length());
  counts_.assign(pixels.counts(), pixels.counts() + pixels.out_length());
  taps_ = pixels.taps();
  // Where samples are pixels, so are their weights.
  const bool direct = !sampling.interpolated && sampling.numerator == sampling.denominator &&
                      box.end <= sampling.length;
  if (!direct) add_samples(pixels, sampling);
  quantize(direct ? pixels.weights() : exact_.data(), pixels.normalizers());
  support_ = {sampling.length, 0};
  for (int i = 0; i < out_length(); ++i) {
    support_ = {std::min(support_.begin, starts_[i]),
                std::max(support_.end, starts_[i] + counts_[i])};
  }
}

// Gives the weight of each pixel to its samples.
void AxisFilter::add_samples(const PixelFilter& pixels, const Sampling& sampling) {
  const Range box = pixels.box();
  const int outputs = out_length();
  const int end = box.end + pixels.taps();  // pixels behind the box have no weight
  sources_.resize(end - box.begin);
  find_sources(box.begin, sampling, sources_);
  taps_ = 0;
  for (int i = 0; i < outputs; ++i) {
    const Source* const sources = &sources_[starts_[i] - box.begin];
    const int end = sources[counts_[i] - 1].second + 1;
    starts_[i] = sources[0].first;
    counts_[i] = end - starts_[i];
    taps_ = std::max(taps_, counts_[i]);
  }
  exact_.assign(static_cast<size_t>(taps_) * outputs, 0.0f);
  constexpr int kBlock = 64;
  int first[kBlock], second[kBlock];  // the samples of a pixel, from the output's start on
  float to_first[kBlock], to_second[kBlock];
  for (int begin = 0; begin < outputs; begin += kBlock) {
    const int block = std::min(kBlock, outputs - begin);
    const int* const starts = &starts_[begin];
    const int* const begins = &pixels.begins()[begin];
    for (int k = 0; k < pixels.taps(); ++k) {
      const float* const weights = &pixels.weights()[static_cast<size_t>(k) * outputs + begin];
      int from = taps_, last = 0;
      for (int i = 0; i < block; ++i) {
        const Source& source = sources_[begins[i] - box.begin + k];
        first[i] = source.first - starts[i];
        second[i] = source.second - starts[i];
        to_first[i] = weights[i] * source.share;
        to_second[i] = weights[i] * (1.0f - source.share);
        from = std::min(from, first[i]);
        last = std::max(last, second[i]);
      }
      // Pixels in their order: the sums are rounded.
      for (int sample = from; sample <= std::min(last, taps_ - 1); ++sample) {
        float* const exact = &exact_[static_cast<size_t>(sample) * outputs + begin];
        for (int i = 0; i < block; ++i) {
          exact[i] += first[i] == sample ? to_first[i] : 0.0f;
          exact[i] += second[i] == sample ? to_second[i] : 0.0f;
        }
      }
    }
  }
}

// Rounds the weights of each output, which sum to about 1 / normalizer. What is missing goes to the
// largest, so that a flat area stays flat.
void AxisFilter::quantize(const float* exact, const float* normalizers) {
  const int outputs = out_length();
  weights_.resize(static_cast<size_t>(taps_) * outputs);
  constexpr int kBlock = 64;
  int remainder[kBlock], largest[kBlock], at[kBlock];
  for (int begin = 0; begin < outputs; begin += kBlock) {
    const int block = std::min(kBlock, outputs - begin);
    std::fill_n(remainder, block, 1 << kWeightBits);
    std::fill_n(largest, block, -1);
    for (int k = 0; k < taps_; ++k) {
      const size_t row = static_cast<size_t>(k) * outputs + begin;
      for (int i = 0; i < block; ++i) {
        const int weight = static_cast<int>(exact[row + i] * normalizers[begin + i] + 0.5f);
        weights_[row + i] = weight;
        remainder[i] -= weight;
        at[i] = weight > largest[i] ? k : at[i];
        largest[i] = std::max(largest[i], weight);
      }
    }
    for (int k = 0; k < taps_; ++k) {
      Weight* const weights = &weights_[static_cast<size_t>(k) * outputs + begin];
      for (int i = 0; i < block; ++i) {
        weights[i] = (weights[i] + (at[i] == k ? remainder[i] : 0)) * 0x10001;  // twice
      }
    }
  }
}

}  // namespace fastselfie::jpeg
