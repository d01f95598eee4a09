// Fused batch norm and ReLU for training on a CPU, on channels-last tensors. Their cost is memory
// traffic: separate batch norm and ReLU read or write the activations five times in the forward
// pass and eight times in the backward pass; these do it three and five times.

namespace {

// Rows per block. A block is summed in float; the sums of the blocks are added in double and in
// order. So the result does not depend on the number of threads, and a large batch does not lose
// precision.
constexpr int64_t kRows = 64;

int64_t blocks_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

// Calls run(block, begin, count) for every block of rows, in parallel.
template <typename Run>
void over_blocks(int64_t rows, int threads, Run&& run) {
  const int64_t blocks = blocks_of(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kRows;
    run(block, begin, std::min(kRows, rows - begin));
  }
}

// Computes the mean of a block and the sum of squared distances from it, (2, channels). A second
// pass, while the block is in cache, because sums of squares would cancel for a large mean.
template <typename Number>
void moments(const Number* rows, int64_t count, int64_t channels, float* out) {
  float* const mean = out;
  float* const squares = out + channels;
  std::memset(out, 0, 2 * channels * sizeof(float));
  for (int64_t r = 0; r < count; ++r) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) mean[c] += load(rows[r * channels + c]);
  }
  const float share = 1.0f / static_cast<float>(count);
  for (int64_t c = 0; c < channels; ++c) mean[c] *= share;
  for (int64_t r = 0; r < count; ++r) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float distance = load(rows[r * channels + c]) - mean[c];
      squares[c] += distance * distance;
    }
  }
}

// Merges the moments of a block of `count` rows into those of the `seen` rows before it, both
// (2, channels) (Chan et al., 1983).
void merge(const float* block, int64_t channels, int64_t seen, int64_t count, double* merged) {
  double* const mean = merged;
  double* const squares = merged + channels;
  const double share = static_cast<double>(count) / static_cast<double>(seen + count);
  const double factor = static_cast<double>(seen) * share;
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const double apart = block[c] - mean[c];
    squares[c] += block[channels + c] + apart * apart * factor;
    mean[c] += apart * share;
  }
}

template <typename Number>
void activate(const Number* rows, int64_t count, int64_t channels, const float* scale,
              const float* shift, Number* y) {
  for (int64_t r = 0; r < count; ++r) {
    // Written so that NaN passes through: max(0, NaN) could be 0.
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float value = load(rows[r * channels + c]) * scale[c] + shift[c];
      store(value < 0.0f ? 0.0f : value, y[r * channels + c]);
    }
  }
}

// The part of Statistics that the backward pass reads.
struct Found {
  const float *mean, *scale, *shift;
};

// Returns the gradient behind the ReLU. Its input is computed again, with the same bits as in the
// forward pass, because that is cheaper than reading y.
inline float came_through(float value, float gradient, const Found& found, int64_t c) {
  return value * found.scale[c] + found.shift[c] > 0.0f ? gradient : 0.0f;
}

// Computes two sums over a block, (2, channels): of the gradient behind the ReLU, and of that
// gradient times (x - mean).
template <typename Number>
void gradient_sums(const Number* rows, const Number* gradient, int64_t count, int64_t channels,
                   Found found, float* out) {
  float* const plain = out;
  float* const weighted = out + channels;
  std::memset(out, 0, 2 * channels * sizeof(float));
  for (int64_t r = 0; r < count; ++r) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float value = load(rows[r * channels + c]);
      const float through = came_through(value, load(gradient[r * channels + c]), found, c);
      plain[c] += through;
      weighted[c] += through * (value - found.mean[c]);
    }
  }
}

// Coefficients of dx = factor * g + slope * (x - mean) + offset, per channel.
struct Line {
  const float *factor, *slope, *offset;
};

template <typename Number>
void gradient_rows(const Number* rows, const Number* gradient, int64_t count, int64_t channels,
                   Found found, Line line, Number* out) {
  for (int64_t r = 0; r < count; ++r) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float value = load(rows[r * channels + c]);
      const float through = came_through(value, load(gradient[r * channels + c]), found, c);
      store(line.factor[c] * through +
                (line.slope[c] * (value - found.mean[c]) + line.offset[c]),
            out[r * channels + c]);
    }
  }
}

}  // namespace

template <typename Number>
void norm_relu_forward(const Activations<Number>& x, const float* weight, const float* bias,
                       double epsilon, int threads, const Statistics& found, Number* y) {
  const int64_t rows = x.rows, channels = x.channels;
  std::vector<float> sums(blocks_of(rows) * 2 * channels);
  over_blocks(rows, threads, [&](int64_t block, int64_t begin, int64_t count) {
    moments(x.values + begin * channels, count, channels, &sums[block * 2 * channels]);
  });
  std::vector<double> merged(2 * channels);
  const double *const mean = merged.data(), *const squares = mean + channels;
  for (int64_t block = 0; block < blocks_of(rows); ++block) {
    const int64_t begin = block * kRows;
    merge(&sums[block * 2 * channels], channels, begin, std::min(kRows, rows - begin),
          merged.data());
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double variance = squares[c] / static_cast<double>(rows);
    found.mean[c] = static_cast<float>(mean[c]);
    found.variance[c] = static_cast<float>(variance);
    found.scale[c] = static_cast<float>(weight[c] / std::sqrt(variance + epsilon));
    found.shift[c] = static_cast<float>(bias[c] - mean[c] * found.scale[c]);
  }
  over_blocks(rows, threads, [&](int64_t, int64_t begin, int64_t count) {
    activate(x.values + begin * channels, count, channels, found.scale, found.shift,
             y + begin * channels);
  });
}

template <typename Number>
void norm_relu_backward(const Activations<Number>& x, const Number* gradient, const float* weight,
                        const Statistics& found, double epsilon, int threads, Number* grad_x,
                        float* grad_weight, float* grad_bias) {
  const int64_t rows = x.rows, channels = x.channels;
  const Found forward{found.mean, found.scale, found.shift};
  std::vector<float> sums(blocks_of(rows) * 2 * channels);
  over_blocks(rows, threads, [&](int64_t block, int64_t begin, int64_t count) {
    gradient_sums(x.values + begin * channels, gradient + begin * channels, count, channels,
                  forward, &sums[block * 2 * channels]);
  });
  std::vector<float> factors(channels), offset(channels), slope(channels);
  std::vector<double> totals(2 * channels);
  const double *const plain = totals.data(), *const weighted = plain + channels;
  for (int64_t block = 0; block < blocks_of(rows); ++block) {
    for (int64_t i = 0; i < 2 * channels; ++i) totals[i] += sums[block * 2 * channels + i];
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double inverse = 1.0 / std::sqrt(found.variance[c] + epsilon);
    grad_bias[c] = static_cast<float>(plain[c]);
    grad_weight[c] = static_cast<float>(weighted[c] * inverse);
    // dx = factor * (g - mean(g) - xhat * mean(g * xhat)), xhat = (x - mean) * inverse
    const double factor = weight[c] * inverse;
    const double along = -factor * inverse * inverse * weighted[c] / static_cast<double>(rows);
    factors[c] = static_cast<float>(factor);
    slope[c] = static_cast<float>(along);
    offset[c] = static_cast<float>(-factor * plain[c] / static_cast<double>(rows));
  }
  const Line line{factors.data(), slope.data(), offset.data()};
  over_blocks(rows, threads, [&](int64_t, int64_t begin, int64_t count) {
    gradient_rows(x.values + begin * channels, gradient + begin * channels, count, channels,
                  forward, line, grad_x + begin * channels);
  });
}
