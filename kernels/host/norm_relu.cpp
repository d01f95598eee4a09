// Batch norm and ReLU in one, for training on a CPU: over rows of channels, as a channels-last
// tensor lies in memory. Plain batch norm and ReLU read and write the activations five times
// forward and eight times backward; here it is three and five, and that is what they cost.
#include <algorithm>
#include <cmath>
#include <vector>

#include "host.hpp"

namespace fastselfie::host {
namespace {

// Rows of a block. Its sums are made in float, those of blocks are added in double, in order: so a
// result depends neither on the number of threads nor on the batch being large.
constexpr int64_t kRows = 64;

int64_t blocks_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

// Every block's two sums a channel, (blocks, 2, channels), by sum(block's rows, their number, out).
template <typename Sum>
std::vector<float> block_sums(int64_t rows, int64_t channels, int threads, Sum&& sum) {
  const int64_t blocks = blocks_of(rows);
  std::vector<float> sums(blocks * 2 * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kRows;
    sum(begin, std::min(kRows, rows - begin), &sums[block * 2 * channels]);
  }
  return sums;
}

}  // namespace

void norm_relu_forward(const Activations& x, const float* weight, const float* bias, double epsilon,
                       int threads, const Statistics& found, float* y) {
  const int64_t rows = x.rows, channels = x.channels;
  // First the mean of each block and the squared distances from it, while the block is in cache:
  // sums of squares alone would cancel where the mean is large.
  const std::vector<float> sums =
      block_sums(rows, channels, threads, [&](int64_t begin, int64_t count, float* out) {
        float* const total = out;
        float* const squares = out + channels;
        std::fill_n(out, 2 * channels, 0.0f);
        for (int64_t r = begin; r < begin + count; ++r) {
          const float* row = x.values + r * channels;
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) total[c] += row[c];
        }
        const float share = 1.0f / static_cast<float>(count);
        for (int64_t c = 0; c < channels; ++c) total[c] *= share;
        for (int64_t r = begin; r < begin + count; ++r) {
          const float* row = x.values + r * channels;
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) {
            const float distance = row[c] - total[c];
            squares[c] += distance * distance;
          }
        }
      });
  float* const mean = found.mean;
  float* const scale = found.scale;
  float* const shift = found.shift;
  const int64_t blocks = blocks_of(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t c = 0; c < channels; ++c) {
    double middle = 0, squares = 0, seen = 0;
    for (int64_t block = 0; block < blocks; ++block) {  // Chan et al., 1983
      const float* part = &sums[block * 2 * channels];
      const auto count = static_cast<double>(std::min(kRows, rows - block * kRows));
      const double apart = part[c] - middle;
      squares += part[channels + c] + apart * apart * seen * count / (seen + count);
      middle += apart * count / (seen + count);
      seen += count;
    }
    mean[c] = static_cast<float>(middle);
    found.variance[c] = static_cast<float>(squares / static_cast<double>(rows));
    scale[c] = static_cast<float>(weight[c] / std::sqrt(squares / static_cast<double>(rows) + epsilon));
    shift[c] = static_cast<float>(bias[c] - middle * scale[c]);
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x.values + r * channels;
    float* out = y + r * channels;
    // The comparison is this way round so that a NaN goes through.
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float value = row[c] * scale[c] + shift[c];
      out[c] = value < 0.0f ? 0.0f : value;
    }
  }
}

void norm_relu_backward(const Activations& x, const float* gradient, const float* weight,
                        const Statistics& found, double epsilon, int threads, float* grad_x,
                        float* grad_weight, float* grad_bias) {
  const int64_t rows = x.rows, channels = x.channels;
  const float* const mean = found.mean;
  const float* const scale = found.scale;
  const float* const shift = found.shift;
  // Sums of the gradient that came through the ReLU, and of it times x's distance from the mean. What
  // the ReLU let through is computed again, to the bit: cheaper than to read y.
  const std::vector<float> sums =
      block_sums(rows, channels, threads, [&](int64_t begin, int64_t count, float* out) {
        float* const plain = out;
        float* const weighted = out + channels;
        std::fill_n(out, 2 * channels, 0.0f);
        for (int64_t r = begin; r < begin + count; ++r) {
          const float* row = x.values + r * channels;
          const float* g = gradient + r * channels;
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) {
            const float incoming = g[c];
            const float through = row[c] * scale[c] + shift[c] > 0.0f ? incoming : 0.0f;
            plain[c] += through;
            weighted[c] += through * (row[c] - mean[c]);
          }
        }
      });
  std::vector<float> factors(channels), offset(channels), slope(channels);
  const int64_t blocks = blocks_of(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t c = 0; c < channels; ++c) {
    double plain = 0, weighted = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      plain += sums[block * 2 * channels + c];
      weighted += sums[(block * 2 + 1) * channels + c];
    }
    const double inverse = 1.0 / std::sqrt(found.variance[c] + epsilon);
    grad_bias[c] = static_cast<float>(plain);
    grad_weight[c] = static_cast<float>(weighted * inverse);
    // dx = scale (g - mean(g) - xhat mean(g xhat)) = scale g + slope x + offset
    const double factor = weight[c] * inverse;
    const double along = -factor * inverse * inverse * weighted / static_cast<double>(rows);
    factors[c] = static_cast<float>(factor);
    slope[c] = static_cast<float>(along);
    offset[c] = static_cast<float>(-factor * plain / static_cast<double>(rows));
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x.values + r * channels;
    const float* g = gradient + r * channels;
    float* out = grad_x + r * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float incoming = g[c];
            const float through = row[c] * scale[c] + shift[c] > 0.0f ? incoming : 0.0f;
      out[c] = factors[c] * through + (slope[c] * (row[c] - mean[c]) + offset[c]);
    }
  }
}

}  // namespace fastselfie::host
