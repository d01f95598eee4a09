// Python's view of the engine, one image at a time; typed and documented in _jpeg.pyi.
#include "bindings.hpp"

#include <pybind11/stl.h>

#include "coefficients.hpp"
#include "decode.hpp"
#include "transcode.hpp"

namespace {

using namespace fastselfie::jpeg;
using BoxTuple = std::tuple<int, int, int, int>;  // left, top, width, height
using SizeTuple = std::tuple<int, int>;           // height, width: the order of arrays

Box to_box(const BoxTuple& b) {
  return {std::get<0>(b), std::get<1>(b), std::get<2>(b), std::get<3>(b)};
}
Size to_size(const SizeTuple& s) { return {std::get<1>(s), std::get<0>(s)}; }

Engine to_engine(const std::string& name) {
  if (name == "auto") return Engine::kAuto;
  if (name == "libjpeg") return Engine::kLibjpeg;
  throw py::value_error("engine is 'auto' or 'libjpeg', not '" + name + "'");
}

Padding to_padding(const std::string& name) {
  if (name == "none") return Padding::kNone;
  if (name == "zero") return Padding::kZero;
  if (name == "reflect") return Padding::kReflect;
  throw py::value_error("padding is 'none', 'zero' or 'reflect', not '" + name + "'");
}

// One decoder a thread for the one-image functions, as in the batch engine.
Decoder& this_threads_decoder() {
  thread_local Decoder decoder;
  return decoder;
}

py::array_t<uint8_t> new_image(Size size) {
  if (size.width < 1 || size.height < 1 || size.width > kMaxOutputSide ||
      size.height > kMaxOutputSide) {
    throw Error("bad output size");
  }
  return py::array_t<uint8_t>({size.height, size.width, 3});
}

py::bytes py_transcode(const py::buffer& data, std::optional<int> restart_mcus) {
  if (restart_mcus == 0) throw Error("restart_mcus must be at least 1");
  const BufferView view(data);
  std::vector<uint8_t> out;
  {
    const py::gil_scoped_release release;
    out = transcode(view.bytes(), restart_mcus.value_or(0));
  }
  return py::bytes(reinterpret_cast<const char*>(out.data()), out.size());
}

void py_check(const py::buffer& data) {
  const BufferView view(data);
  const py::gil_scoped_release release;
  check(view.bytes());
}

py::object py_crop(const py::buffer& data, int left, int top, int width, int height) {
  const BufferView view(data);
  std::optional<Crop> small;
  {
    const py::gil_scoped_release release;
    small = crop(view.bytes(), {left, top, width, height});
  }
  if (!small) return py::none();
  return py::make_tuple(
      py::bytes(reinterpret_cast<const char*>(small->jpeg.data()), small->jpeg.size()), small->left,
      small->top);
}

// The header is needed only for what the caller leaves out; the decoder parses it again, which takes
// microseconds.
py::array_t<uint8_t> py_decode_resized(const py::buffer& data, const std::optional<BoxTuple>& box,
                                       const std::optional<SizeTuple>& size, bool flip,
                                       const std::string& engine) {
  const BufferView view(data);
  const Engine which = to_engine(engine);
  const Size image = parse_header(view.bytes()).size;
  const Box part = box ? to_box(*box) : Box{0, 0, image.width, image.height};
  require_box_inside(part, image);  // before memory is allocated
  const Size out_size = size ? to_size(*size) : Size{part.width, part.height};
  py::array_t<uint8_t> out = new_image(out_size);
  uint8_t* const rgb = out.mutable_data();
  const py::gil_scoped_release release;
  this_threads_decoder().decode_resized(view.bytes(), part, flip, out_size, rgb, which);
  return out;
}

py::array_t<uint8_t> py_resize_raw(const Array<uint8_t>& image, const BoxTuple& box,
                                   const SizeTuple& size, bool flip, const std::string& padding) {
  if (image.ndim() != 3 || image.shape(2) != 3 || image.shape(0) > INT32_MAX ||
      image.shape(1) > INT32_MAX) {
    throw py::value_error("a raw image is (height, width, 3)");
  }
  py::array_t<uint8_t> out = new_image(to_size(size));
  const Size shape{static_cast<int>(image.shape(1)), static_cast<int>(image.shape(0))};
  const Padding outside = to_padding(padding);
  uint8_t* const rgb = out.mutable_data();
  const uint8_t* const pixels = image.data();
  const py::gil_scoped_release release;
  this_threads_decoder().resize_raw(pixels, shape, to_box(box), outside, flip, to_size(size), rgb);
  return out;
}

std::vector<py::array_t<int16_t>> py_coefficients(const py::buffer& data) {
  const BufferView view(data);
  std::vector<py::array_t<int16_t>> arrays;
  for (const Coefficients& c : read_coefficients(view.bytes())) {
    arrays.emplace_back(std::vector<py::ssize_t>{c.block_rows, c.block_columns, 8, 8},
                        c.values.data());
  }
  return arrays;
}

std::vector<py::array_t<uint8_t>> py_planes(const py::buffer& data, const BoxTuple& box,
                                            int block_size, const std::string& engine) {
  if (block_size != 1 && block_size != 2 && block_size != 4 && block_size != 8) {
    throw py::value_error("block_size is 8, 4, 2 or 1");
  }
  const BufferView view(data);
  std::vector<py::array_t<uint8_t>> arrays;
  for (const auto& [plane, size] : this_threads_decoder().decode_planes(
           view.bytes(), to_box(box), block_size, to_engine(engine))) {
    py::array_t<uint8_t> array({size.height, size.width});
    auto pixels = array.mutable_unchecked<2>();
    for (int y = 0; y < size.height; ++y) {
      for (int x = 0; x < size.width; ++x) {
        pixels(y, x) = *plane.at(x + plane.first_x, y + plane.first_y);
      }
    }
    arrays.push_back(std::move(array));
  }
  return arrays;
}

std::vector<std::pair<int, int>> sampling_factors(const Header& h) {
  std::vector<std::pair<int, int>> factors;
  for (int i = 0; i < h.num_components; ++i) {
    factors.emplace_back(h.components[i].h, h.components[i].v);
  }
  return factors;
}

const char* color_name(const Header& h) {
  switch (h.color) {
    case ColorModel::kGray: return "gray";
    case ColorModel::kRgb: return "rgb";
    default: return "ycbcr";
  }
}

}  // namespace

PYBIND11_MODULE(_jpeg, m) {
  using namespace py::literals;
  py::register_exception<Error>(m, "JpegError", PyExc_ValueError);

  py::class_<Header>(m, "Header")
      .def_property_readonly("width", [](const Header& h) { return h.size.width; })
      .def_property_readonly("height", [](const Header& h) { return h.size.height; })
      .def_property_readonly("sampling", sampling_factors)
      .def_property_readonly("color", color_name)
      .def_readonly("progressive", &Header::progressive)
      .def_readonly("restart_interval", &Header::restart_interval)
      .def_property_readonly("can_crop",
                             [](const Header& h) { return static_cast<bool>(cut_grid(h)); });

  m.def(
      "read_header", [](const py::buffer& data) { return parse_header(BufferView(data).bytes()); },
      "data"_a);
  m.def("transcode", py_transcode, "data"_a, "restart_mcus"_a = py::none());
  m.def("check", py_check, "data"_a);
  m.def("crop", py_crop, "data"_a, "left"_a, "top"_a, "width"_a, "height"_a);
  m.def("decode_resized", py_decode_resized, "data"_a, "box"_a = py::none(),
        "size"_a = py::none(), "flip"_a = false, "engine"_a = "auto");
  m.def("resize_raw", py_resize_raw, "image"_a, "box"_a, "size"_a, "flip"_a = false,
        "padding"_a = "none");
  m.def("coefficients", py_coefficients, "data"_a);
  m.def("planes", py_planes, "data"_a, "box"_a, "block_size"_a = 8, "engine"_a = "auto");
  m.def("available_kernels", available_kernels);
  m.def("selected_kernels", [] { return std::string(kernels().name); });
  m.def("select_kernels", select_kernels, "name"_a);

  fastselfie::jpeg::bind_batch_decoder(m);
}
