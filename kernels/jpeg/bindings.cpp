// Python's view of the engine; typed in _jpeg.pyi, documented in __init__.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <optional>

#include "batch.hpp"

namespace py = pybind11;
using namespace fastselfie::jpeg;

namespace {

using BoxTuple = std::tuple<int, int, int, int>;  // left, top, width, height
using SizeTuple = std::tuple<int, int>;           // height, width: the order of arrays
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

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

// Holds any object with a contiguous buffer (bytes, mmap, memoryview, array) while C++ reads it.
class BufferView {
 public:
  explicit BufferView(py::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  BufferView(BufferView&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
  BufferView& operator=(BufferView&&) = delete;
  ~BufferView() {
    if (view_.obj) PyBuffer_Release(&view_);
  }
  Bytes bytes() const {
    return {static_cast<const uint8_t*>(view_.buf), static_cast<size_t>(view_.len)};
  }

 private:
  Py_buffer view_;
};

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

py::object py_crop(const py::buffer& data, int left, int top, int width, int height) {
  const BufferView view(data);
  const Header header = parse_header(view.bytes());
  require_box_inside({left, top, width, height}, header.size);
  if (!cut_grid(header)) return py::none();
  std::vector<Bytes> intervals;
  index_intervals(view.bytes(), header, intervals);
  const int mcu_w = header.mcu_width(), mcu_h = header.mcu_height();
  std::vector<uint8_t> out;
  const McuOffset corner =
      cut_mcus(view.bytes(), header, intervals, {left / mcu_w, ceil_div(left + width, mcu_w)},
               {top / mcu_h, ceil_div(top + height, mcu_h)}, out);
  return py::make_tuple(py::bytes(reinterpret_cast<const char*>(out.data()), out.size()),
                        left - corner.x * mcu_w, top - corner.y * mcu_h);
}

py::array_t<uint8_t> py_decode_resized(const py::buffer& data, const BoxTuple& box,
                                       const SizeTuple& size, bool flip,
                                       const std::string& engine) {
  const BufferView view(data);
  py::array_t<uint8_t> out = new_image(to_size(size));
  const Engine which = to_engine(engine);
  uint8_t* const rgb = out.mutable_data();
  const py::gil_scoped_release release;
  this_threads_decoder().decode_resized(view.bytes(), to_box(box), flip, to_size(size), rgb, which);
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
  this_threads_decoder().resize_raw(image.data(), shape, to_box(box), to_padding(padding), flip,
                                    to_size(size), out.mutable_data());
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
        pixels(y, x) = plane.data[static_cast<size_t>(x) * plane.stride + y];
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

// A column of the batch: an array of `columns` numbers an item, or nothing.
template <typename T>
const T* column(const std::optional<Array<T>>& array, py::ssize_t items, py::ssize_t columns,
                const char* name) {
  if (!array) return nullptr;
  const bool flat = columns == 1 && array->ndim() == 1;
  const bool table = array->ndim() == 2 && array->shape(1) == columns;
  if ((!flat && !table) || array->shape(0) != items) {
    throw py::value_error(std::string(name) + " has the wrong shape for " + std::to_string(items) +
                          " items");
  }
  return array->data();
}

class PyBatchDecoder {
 public:
  explicit PyBatchDecoder(int threads)
      : threads_(threads), pool_(std::make_unique<BatchPool>(checked(threads))) {}
  ~PyBatchDecoder() {
    close();
    if (pool_->is_forked_copy()) pool_.release();
  }

  int threads() const { return threads_; }

  uint64_t submit(const py::object& data, const Array<int32_t>& boxes,
                  const std::optional<Array<uint8_t>>& flips, py::array out,
                  const std::optional<Array<uint64_t>>& offsets,
                  const std::optional<Array<uint64_t>>& sizes,
                  const std::optional<Array<uint8_t>>& kinds,
                  const std::optional<Array<int32_t>>& shapes) {
    Ticket ticket;
    if (!py::isinstance<py::array_t<uint8_t>>(out) || out.ndim() != 4 || out.shape(3) != 3 ||
        !(out.flags() & py::array::c_style) || !out.writeable()) {
      throw py::value_error("out is a writeable, contiguous uint8 array (B, H, W, 3)");
    }
    const py::ssize_t count = out.shape(0);
    if (out.shape(1) < 1 || out.shape(2) < 1 || out.shape(1) > kMaxOutputSide ||
        out.shape(2) > kMaxOutputSide || count > INT32_MAX) {
      throw py::value_error("out has a bad size");
    }
    const int32_t* const box = column(std::optional(boxes), count, 4, "boxes");
    const uint8_t* const flip = column(flips, count, 1, "flips");
    const uint8_t* const kind = column(kinds, count, 1, "kinds");
    const int32_t* const shape = column(shapes, count, 2, "shapes");
    std::vector<Bytes> sources = read_sources(data, offsets, sizes, count, ticket);

    std::vector<Item> items(count);
    for (py::ssize_t i = 0; i < count; ++i) {
      Item& item = items[i];
      item.bytes = sources[i];
      item.box = {box[4 * i], box[4 * i + 1], box[4 * i + 2], box[4 * i + 3]};
      item.flip = flip && flip[i];
      if (kind && kind[i] > static_cast<int>(Kind::kRawReflected)) {
        throw py::value_error("kinds are 0 to 3");
      }
      if (kind) item.kind = static_cast<Kind>(kind[i]);
      if (shape) item.raw_size = {shape[2 * i + 1], shape[2 * i]};
    }
    const Size size{static_cast<int>(out.shape(2)), static_cast<int>(out.shape(1))};
    ticket.batch =
        std::make_shared<Batch>(std::move(items), size, static_cast<uint8_t*>(out.mutable_data()));
    ticket.out = std::move(out);
    pool_->submit(ticket.batch);
    tickets_.emplace(++last_ticket_, std::move(ticket));
    return last_ticket_;
  }

  std::vector<std::pair<int, std::string>> wait(uint64_t number, bool help) {
    const auto found = tickets_.find(number);
    if (found == tickets_.end()) throw py::key_error("no such ticket, or waited for already");
    const std::shared_ptr<Batch> batch = found->second.batch;
    std::vector<Failure> failures;
    {
      const py::gil_scoped_release release;
      failures = pool_->wait(*batch, help);
    }
    tickets_.erase(number);
    std::vector<std::pair<int, std::string>> result;
    for (Failure& f : failures) result.emplace_back(f.index, std::move(f.message));
    return result;
  }

  void close() {
    if (pool_->is_forked_copy()) return;
    {
      const py::gil_scoped_release release;
      pool_->close();
    }
    // Nothing is read or written any more; failures can still be asked for.
    for (auto& [number, ticket] : tickets_) {
      ticket.sources.clear();
      ticket.out = py::array();
    }
  }

 private:
  // What a batch in flight reads from and writes to must stay alive.
  struct Ticket {
    std::shared_ptr<Batch> batch;
    std::vector<BufferView> sources;
    py::array out;
  };

  static int checked(int threads) {
    if (threads < 1 || threads > 1024) throw py::value_error("threads is 1 to 1024");
    return threads;
  }

  static std::vector<Bytes> read_sources(const py::object& data,
                                         const std::optional<Array<uint64_t>>& offsets,
                                         const std::optional<Array<uint64_t>>& sizes,
                                         py::ssize_t count, Ticket& ticket) {
    std::vector<Bytes> sources;
    const uint64_t* const offset = column(offsets, count, 1, "offsets");
    const uint64_t* const length = column(sizes, count, 1, "sizes");
    if (!offset != !length) throw py::value_error("offsets and sizes come together");
    if (offset) {
      ticket.sources.emplace_back(data);
      const Bytes all = ticket.sources.back().bytes();
      for (py::ssize_t i = 0; i < count; ++i) {
        // A pointer that leaves the file is this sample's fault alone: no bytes, "not a JPEG".
        const bool inside = offset[i] <= all.size && length[i] <= all.size - offset[i];
        sources.push_back(inside ? Bytes{all.data + offset[i], length[i]} : Bytes{});
      }
      return sources;
    }
    for (const py::handle item : py::reinterpret_borrow<py::sequence>(data)) {
      ticket.sources.emplace_back(item);
      sources.push_back(ticket.sources.back().bytes());
    }
    if (static_cast<py::ssize_t>(sources.size()) != count) {
      throw py::value_error("data and out differ in length");
    }
    return sources;
  }

  const int threads_;
  std::unique_ptr<BatchPool> pool_;
  std::map<uint64_t, Ticket> tickets_;
  uint64_t last_ticket_ = 0;
};

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
  m.def("crop", py_crop, "data"_a, "left"_a, "top"_a, "width"_a, "height"_a);
  m.def("decode_resized", py_decode_resized, "data"_a, "box"_a, "size"_a, "flip"_a = false,
        "engine"_a = "auto");
  m.def("resize_raw", py_resize_raw, "image"_a, "box"_a, "size"_a, "flip"_a = false,
        "padding"_a = "none");
  m.def("coefficients", py_coefficients, "data"_a);
  m.def("planes", py_planes, "data"_a, "box"_a, "block_size"_a = 8, "engine"_a = "auto");
  m.def("available_kernels", available_kernels);
  m.def("selected_kernels", [] { return std::string(kernels().name); });
  m.def("select_kernels", select_kernels, "name"_a);

  py::class_<PyBatchDecoder>(m, "BatchDecoder")
      .def(py::init<int>(), "threads"_a)
      .def_property_readonly("threads", &PyBatchDecoder::threads)
      .def("submit", &PyBatchDecoder::submit, "data"_a, "boxes"_a, "flips"_a = py::none(),
           py::kw_only(), "out"_a, "offsets"_a = py::none(), "sizes"_a = py::none(),
           "kinds"_a = py::none(), "shapes"_a = py::none())
      .def("wait", &PyBatchDecoder::wait, "ticket"_a, "help"_a = false)
      .def("close", &PyBatchDecoder::close)
      .def("__enter__", [](py::object self) { return self; })
      .def("__exit__", [](PyBatchDecoder& self, const py::args&) { self.close(); });
}
