// Python's view of the batch engine; typed and documented in _jpeg.pyi.
//
// Every member runs with the GIL, which guards the tickets; it is released only around the waits of
// wait() and close(), so that other threads may call in meanwhile.
#include <pybind11/stl.h>

#include <map>
#include <optional>

#include "batch.hpp"
#include "bindings.hpp"

namespace fastselfie::jpeg {
namespace {

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
  PyBatchDecoder(int threads, int niceness)
      : threads_(threads), pool_(std::make_unique<BatchPool>(checked(threads), niceness)) {}
  ~PyBatchDecoder() {
    close();
    if (pool_->is_forked_copy()) {  // whoever waited for a batch then is never going to leave it
      pool_.release();
      new std::map<uint64_t, Ticket>(std::move(tickets_));
    }
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
      for (py::ssize_t i = 0; i < count; ++i) sources.push_back(slice(all, offset[i], length[i]));
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

void bind_batch_decoder(py::module_& m) {
  using namespace py::literals;
  py::class_<PyBatchDecoder>(m, "BatchDecoder")
      .def(py::init<int, int>(), "threads"_a, "niceness"_a = 0)
      .def_property_readonly("threads", &PyBatchDecoder::threads)
      .def("submit", &PyBatchDecoder::submit, "data"_a, "boxes"_a, "flips"_a = py::none(),
           py::kw_only(), "out"_a, "offsets"_a = py::none(), "sizes"_a = py::none(),
           "kinds"_a = py::none(), "shapes"_a = py::none())
      .def("wait", &PyBatchDecoder::wait, "ticket"_a, "help"_a = false)
      .def("close", &PyBatchDecoder::close)
      .def("__enter__", [](py::object self) { return self; })
      .def("__exit__", [](PyBatchDecoder& self, const py::args&) { self.close(); });
}

}  // namespace fastselfie::jpeg
