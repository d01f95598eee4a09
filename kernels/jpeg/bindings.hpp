// What the files of the Python bindings share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "common.hpp"

namespace fastselfie::jpeg {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

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

// Adds the class BatchDecoder (bindings_batch.cpp).
void bind_batch_decoder(py::module_& m);

}  // namespace fastselfie::jpeg
