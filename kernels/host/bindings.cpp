// Python bindings of the host kernels; _host.pyi has the types and the documentation. A wrong
// argument raises ValueError, which names it. The kernels run without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <optional>
#include <string>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "host.hpp"

namespace fastselfie::host {
namespace {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool holds, const std::string& otherwise) {
  if (!holds) throw py::value_error(otherwise);
}

template <typename T>
void require_shape(const Array<T>& array, std::initializer_list<py::ssize_t> shape,
                   const char* name) {
  bool equal = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; equal && i < shape.size(); ++i) equal = array.shape(i) == shape.begin()[i];
  require(equal, std::string(name) + " has the wrong shape");
}

// Requires that every value lies in [0, end).
void require_below(const int64_t* values, py::ssize_t count, py::ssize_t step, int64_t end,
                   const char* name) {
  for (py::ssize_t i = 0; i < count; ++i) {
    const int64_t value = values[i * step];
    if (value >= 0 && value < end) continue;
    throw py::value_error(std::string(name) + " holds " + std::to_string(value) +
                          ", which is not in [0, " + std::to_string(end) + ")");
  }
}

constexpr int64_t kWords = int64_t{1} << 32;

Array<double> py_uniform(uint32_t seed, uint32_t purpose, const Array<int64_t>& epochs,
                         const Array<int64_t>& samples, py::ssize_t count) {
  require(samples.ndim() == 1, "samples has the wrong shape");
  require_shape(epochs, {samples.size()}, "epochs");
  require(count >= 0, "count must not be negative");
  require_below(samples.data(), samples.size(), 1, kWords, "samples");
  require_below(epochs.data(), epochs.size(), 1, kWords, "epochs");
  Array<double> out({samples.size(), count});
  double* const numbers = out.mutable_data();
  py::gil_scoped_release release;
  uniform(seed, purpose, epochs.data(), samples.data(), samples.size(), count, numbers);
  return out;
}

void py_gather_crops(const Array<uint8_t>& images, const Array<int64_t>& samples,
                     const Array<int64_t>& offsets, const Array<bool>& flips, py::array out) {
  require(images.ndim() == 4 && images.shape(3) == 3, "images has the wrong shape");
  require(samples.ndim() == 1, "samples has the wrong shape");
  const py::ssize_t count = samples.size();
  require_shape(offsets, {count, 2}, "offsets");
  require_shape(flips, {count}, "flips");
  require(py::isinstance<py::array_t<uint8_t>>(out) && (out.flags() & py::array::c_style) &&
              out.writeable() && out.ndim() == 4 && out.shape(0) == count &&
              out.shape(1) == out.shape(2) && out.shape(2) > 0 && out.shape(3) == 3,
          "out is a writeable, contiguous uint8 array (B, S, S, 3)");
  const ImageSet set{images.data(), images.shape(0), images.shape(1), images.shape(2)};
  const int64_t size = out.shape(1);
  require_below(samples.data(), count, 1, set.n, "samples");
  require_below(offsets.data(), count, 2, set.height - size + 1, "offsets, y,");
  require_below(offsets.data() + 1, count, 2, set.width - size + 1, "offsets, x,");
  auto* const pixels = static_cast<uint8_t*>(out.mutable_data());
  py::gil_scoped_release release;
  gather_crops(set, samples.data(), offsets.data(), flips.data(), count, size, pixels);
}

void py_patchify(const Array<uint8_t>& images, const Array<bool>& flips,
                 const Array<int64_t>& order, py::ssize_t side, py::ssize_t window,
                 const std::optional<Array<int64_t>>& corners,
                 const std::optional<Array<bool>>& grey, const Array<float>& scale,
                 const Array<float>& offset, int threads, const py::array& out) {
  require(images.ndim() == 4 && images.shape(3) == 3, "images has the wrong shape");
  const ImageSet set{images.data(), images.shape(0), images.shape(1), images.shape(2)};
  require(side > 0 && set.height % side == 0 && set.width % side == 0,
          "side must divide the image");
  require(window > 0 && window <= side, "window must be in [1, side]");
  require(threads > 0, "threads must be at least 1");
  require_shape(flips, {images.shape(0)}, "flips");
  require(order.ndim() == 2 && order.shape(0) == images.shape(0), "order has the wrong shape");
  const py::ssize_t places = (set.height / side) * (set.width / side);
  require_below(order.data(), order.size(), 1, places, "order");
  const bool own_factors = scale.ndim() > 1;
  for (const auto& [factors, name] : {std::pair{&scale, "scale"}, {&offset, "offset"}}) {
    own_factors ? require_shape(*factors, {images.shape(0), places, 3}, name)
                : require_shape(*factors, {3}, name);
  }
  Cut cut{side, window, nullptr, nullptr, scale.data(), offset.data(), own_factors};
  if (corners) {
    require_shape(*corners, {images.shape(0), places, 2}, "corners");
    require_below(corners->data(), corners->size(), 1, side - window + 1, "corners");
    cut.corners = corners->data();
  }
  if (grey) {
    require_shape(*grey, {images.shape(0), places}, "grey");
    cut.grey = grey->data();
  }
  const bool half = py::isinstance<py::array_t<uint16_t>>(out);
  require((half || py::isinstance<py::array_t<float>>(out)) &&
              (out.flags() & py::array::c_style) && out.writeable() &&
              out.size() == order.size() * window * window * 3,
          "out is a writeable, contiguous array (B, N, W, W, 3), float32 or uint16 for bfloat16");
  const auto run = [&](auto* numbers) {
    py::gil_scoped_release release;
    loops<std::remove_pointer_t<decltype(numbers)>>().patchify(
        set, flips.data(), order.data(), order.shape(1), cut, threads, numbers);
  };
  void* const numbers = const_cast<void*>(out.data());
  half ? run(static_cast<uint16_t*>(numbers)) : run(static_cast<float*>(numbers));
}

// The numpy name of Number. numpy has no bfloat16, so uint16 holds its bits.
template <typename Number>
constexpr const char* kind = sizeof(Number) == 4 ? "float32" : "uint16";

template <typename Number>
bool holds(const py::array& array) {
  return py::isinstance<py::array_t<Number>>(array);
}

// Returns the data of a contiguous array of `size` Numbers.
template <typename Number>
Number* numbers(const py::array& array, py::ssize_t size, const char* name) {
  require(holds<Number>(array) && (array.flags() & py::array::c_style) && array.size() == size,
          std::string(name) + " is a contiguous " + kind<Number> + " array of " +
              std::to_string(size));
  return static_cast<Number*>(const_cast<void*>(array.data()));
}

float* floats(const py::array& array, py::ssize_t size, const char* name) {
  return numbers<float>(array, size, name);
}

// Splits a (4, C) float32 array into mean, variance, scale and shift.
Statistics statistics(const py::array& found, py::ssize_t channels) {
  float* const rows = floats(found, 4 * channels, "found");
  return {rows, rows + channels, rows + 2 * channels, rows + 3 * channels};
}

template <typename Number>
Activations<Number> activations(const py::array& x, int threads) {
  require(x.ndim() == 2 && x.size() > 0, "x has the wrong shape");
  require(threads > 0, "threads must be at least 1");
  return {numbers<Number>(x, x.size(), "x"), x.shape(0), x.shape(1)};
}

// Calls `run` with a value of x's element type.
template <typename Run>
void with_numbers_of(const py::array& x, Run&& run) {
  holds<uint16_t>(x) ? run(uint16_t{}) : run(float{});
}

void py_norm_relu_forward(const py::array& x, const py::array& weight, const py::array& bias,
                          double epsilon, int threads, const py::array& found,
                          const py::array& y) {
  with_numbers_of(x, [&](auto number) {
    using Number = decltype(number);
    const Activations<Number> pixels = activations<Number>(x, threads);
    const py::ssize_t channels = x.shape(1);
    const float* const affine[] = {floats(weight, channels, "weight"),
                                   floats(bias, channels, "bias")};
    const Statistics results = statistics(found, channels);
    Number* const out = numbers<Number>(y, x.size(), "y");
    py::gil_scoped_release release;
    loops<Number>().norm_relu_forward(pixels, affine[0], affine[1], epsilon, threads, results, out);
  });
}

void py_norm_relu_backward(const py::array& x, const py::array& gradient, const py::array& weight,
                           const py::array& found, double epsilon, int threads,
                           const py::array& grad_x, const py::array& grad_weight,
                           const py::array& grad_bias) {
  with_numbers_of(x, [&](auto number) {
    using Number = decltype(number);
    const Activations<Number> pixels = activations<Number>(x, threads);
    const py::ssize_t channels = x.shape(1);
    const Number* const incoming = numbers<Number>(gradient, x.size(), "gradient");
    const float* const weights = floats(weight, channels, "weight");
    const Statistics forward = statistics(found, channels);
    Number* const outgoing = numbers<Number>(grad_x, x.size(), "grad_x");
    float* const affine[] = {floats(grad_weight, channels, "grad_weight"),
                             floats(grad_bias, channels, "grad_bias")};
    py::gil_scoped_release release;
    loops<Number>().norm_relu_backward(pixels, incoming, weights, forward, epsilon, threads,
                                       outgoing, affine[0], affine[1]);
  });
}

// An exception must not leave a parallel region, so the first one is rethrown after it.
void py_run_parallel(const py::object& task, int count) {
  require(count > 0, "count must be at least 1");
  std::exception_ptr failed;
  {
    py::gil_scoped_release release;
#pragma omp parallel for num_threads(count) schedule(static, 1)
    for (int i = 0; i < count; ++i) {
      py::gil_scoped_acquire acquire;  // also guards `failed`
      try {
        task(i);
      } catch (...) {
        if (!failed) failed = std::current_exception();
      }
    }
  }
  if (failed) std::rethrow_exception(failed);
}

int py_openmp_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void py_set_openmp_threads(int threads) {
  require(threads > 0, "threads must be at least 1");
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
}

}  // namespace
}  // namespace fastselfie::host

PYBIND11_MODULE(_host, m) {
  namespace host = fastselfie::host;
  namespace py = pybind11;
  m.def("uniform", &host::py_uniform, py::arg("seed"), py::arg("purpose"), py::arg("epochs"),
        py::arg("samples"), py::arg("count"));
  // noconvert: a conversion would copy the whole set for each batch.
  m.def("gather_crops", &host::py_gather_crops, py::arg("images").noconvert(), py::arg("samples"),
        py::arg("offsets"), py::arg("flips"), py::arg("out"));
  m.def("patchify", &host::py_patchify, py::arg("images").noconvert(), py::arg("flips"),
        py::arg("order"), py::arg("side"), py::arg("window"), py::arg("corners"), py::arg("grey"),
        py::arg("scale"), py::arg("offset"), py::arg("threads"), py::arg("out"));
  m.def("norm_relu_forward", &host::py_norm_relu_forward, py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("epsilon"), py::arg("threads"), py::arg("found"), py::arg("y"));
  m.def("norm_relu_backward", &host::py_norm_relu_backward, py::arg("x"), py::arg("gradient"),
        py::arg("weight"), py::arg("found"), py::arg("epsilon"), py::arg("threads"),
        py::arg("grad_x"), py::arg("grad_weight"), py::arg("grad_bias"));
  m.def("run_parallel", &host::py_run_parallel, py::arg("task"), py::arg("count"));
  m.def("openmp_threads", &host::py_openmp_threads);
  m.def("set_openmp_threads", &host::py_set_openmp_threads, py::arg("threads"));
  m.def("available_kernels", &host::available_kernels);
  m.def("selected_kernels", [] { return std::string(host::kernels().name); });
  m.def("select_kernels", &host::select_kernels, py::arg("name"));
}
