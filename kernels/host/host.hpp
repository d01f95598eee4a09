// What the host does for a batch in C++: draws, gathers of small images,
// patches, batch norm with ReLU.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastselfie::host {

// Philox4x32-10 (Salmon et al., SC 2011): key (seed, purpose), counter (sample, epoch, block, 0).
// Writes `count` numbers in [0, 1) for each of n samples, 32 random bits each, to out (n, count).
void uniform(uint32_t seed, uint32_t purpose, const int64_t* epochs, const int64_t* samples,
             size_t n, size_t count, double* out);

// A set of images, (n, height, width, 3) uint8.
struct ImageSet {
  const uint8_t* pixels;
  int64_t n, height, width;
};

// Square crops of `size` pixels: crop i is at offsets[i] = (y, x) of image samples[i], mirrored
// where flips[i]; to out (count, size, size, 3). The caller has checked that all lie inside.
void gather_crops(const ImageSet& set, const int64_t* samples, const int64_t* offsets,
                  const bool* flips, size_t count, int64_t size, uint8_t* out);

// Patch order[b, k] of image b, mirrored beforehand where flips[b], to out (n, patches, side, side,
// 3): level x scale + offset, as float or (uint16_t) bfloat16. `order` is (n, patches), numbers of
// places row by row over the grid; the caller has checked them.
template <typename Number>
void patchify(const ImageSet& images, const bool* flips, const int64_t* order, int64_t patches,
              int64_t side, const float* scale, const float* offset, int threads, Number* out);

// Channels-last activations as a matrix: a row for each pixel of each image. A Number is float or
// (uint16_t) bfloat16; what is computed of them is float.
template <typename Number>
struct Activations {
  const Number* values;
  int64_t rows, channels;
};

// What the forward pass finds of each channel, (channels,) each. variance: biased, as batch norm has
// it. Normalised and weighted, x is x scale + shift.
struct Statistics {
  float *mean, *variance, *scale, *shift;
};

// y = max(0, batch norm of x) in training.
template <typename Number>
void norm_relu_forward(const Activations<Number>& x, const float* weight, const float* bias,
                       double epsilon, int threads, const Statistics& found, Number* y);

// The gradients for x, weight and bias, from that for y.
template <typename Number>
void norm_relu_backward(const Activations<Number>& x, const Number* gradient, const float* weight,
                        const Statistics& found, double epsilon, int threads, Number* grad_x,
                        float* grad_weight, float* grad_bias);

}  // namespace fastselfie::host
