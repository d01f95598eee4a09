// CPU kernels of a batch: random numbers, crops of small images, patches, batch norm with ReLU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastselfie::host {

// Draws `count` numbers in [0, 1) for each of n samples, with 32 random bits each, into `out`
// (n, count). Philox4x32-10 (Salmon et al., SC 2011) with key (seed, purpose) and counter
// (sample, epoch, block, 0).
void uniform(uint32_t seed, uint32_t purpose, const int64_t* epochs, const int64_t* samples,
             size_t n, size_t count, double* out);

// Images in memory: (n, height, width, 3) uint8.
struct ImageSet {
  const uint8_t* pixels;
  int64_t n, height, width;
};

// Copies square crops into `out` (count, size, size, 3). Crop i begins at offsets[i] = (y, x) of
// image samples[i] and is mirrored if flips[i]. The caller has checked that all crops lie inside.
void gather_crops(const ImageSet& set, const int64_t* samples, const int64_t* offsets,
                  const bool* flips, size_t count, int64_t size, uint8_t* out);

// How `patchify` makes the values of a patch from the cell of the grid at its place. Entries of
// `corners`, `grey` and own factors belong to places of an image's grid, row by row.
struct Cut {
  int64_t side, window;         // of a cell, and of the part of it that is kept, in pixels
  const int64_t* corners;       // (n, places, 2), y and x of that part; null: in the centre
  const bool* grey;             // (n, places), which patches lose their colour; null: none
  const float *scale, *offset;  // a value is level * scale + offset; (3,) or (n, places, 3)
  bool own_factors;             // whether each place has its own
};

// Channels-last activations as a matrix with one row per pixel of each image. Number is float or
// bfloat16 (uint16_t); the arithmetic is in float.
template <typename Number>
struct Activations {
  const Number* values;
  int64_t rows, channels;
};

// Per-channel results of the forward pass, (channels,) each. `variance` is the biased one, as in
// batch norm. The normalised and weighted x is x * scale + shift.
struct Statistics {
  float *mean, *variance, *scale, *shift;
};

// The loops over one type of number, compiled for one instruction set.
template <typename Number>
struct Loops {
  // Cuts images into patches: out[b, k] is patch order[b, k] of image b, which is mirrored first if
  // flips[b]. Values are float or bfloat16 (uint16_t). `out` is (n, patches, window, window, 3).
  // `order` (n, patches) numbers the places row by row over the grid. The caller has checked its
  // range and that of the corners.
  void (*patchify)(const ImageSet& images, const bool* flips, const int64_t* order,
                   int64_t patches, const Cut& cut, int threads, Number* out);

  // Computes y = max(0, batch_norm(x)) in training mode.
  void (*norm_relu_forward)(const Activations<Number>& x, const float* weight, const float* bias,
                            double epsilon, int threads, const Statistics& found, Number* y);

  // Computes the gradients of x, weight and bias from `gradient`, that of y.
  void (*norm_relu_backward)(const Activations<Number>& x, const Number* gradient,
                             const float* weight, const Statistics& found, double epsilon,
                             int threads, Number* grad_x, float* grad_weight, float* grad_bias);
};

// The loops that are compiled once per instruction set: those that compilers vectorise. Their code
// is in the .inl files, and kernels_*.cpp compile it. No set fuses a product and a sum
// (-ffp-contract=off in setup.py) or reorders additions, so every set gives the same bits.
struct Kernels {
  const char* name;
  Loops<float> of_float;
  Loops<uint16_t> of_bfloat16;
};

// The set that FASTSELFIE_KERNELS names, else the best that this processor has, unless
// select_kernels() said otherwise.
const Kernels& kernels();
std::vector<std::string> available_kernels();
void select_kernels(const std::string& name);  // "auto", or one of available_kernels()

// The selected loops over a type of number.
template <typename Number>
const Loops<Number>& loops() {
  if constexpr (sizeof(Number) == sizeof(float)) {
    return kernels().of_float;
  } else {
    return kernels().of_bfloat16;
  }
}

}  // namespace fastselfie::host
