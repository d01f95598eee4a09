// What every file of the JPEG engine shares: the error type, a view of bytes, a box, the limits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastselfie::jpeg {

// Every fault of the input is reported as this and becomes `JpegError` in Python.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The file may be sound, but the fast decoder and the transcode cannot hold it: Pillow reads it.
class Unsupported : public Error {
 public:
  explicit Unsupported(const std::string& what) : Error("unsupported: " + what) {}
};

// libjpeg decodes the file, but not every pixel of it as it was encoded.
class LostPixels : public Error {
 public:
  using Error::Error;
};

// A view of somebody else's bytes. Every reader checks against `size`: the input is hostile.
struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;
};

// `size` bytes at `offset`, or none at all where they would leave `all`.
inline Bytes slice(Bytes all, uint64_t offset, uint64_t size) {
  if (offset > all.size || size > all.size - offset) return {};
  return {all.data + offset, static_cast<size_t>(size)};
}

// Pixels [left, left + width) x [top, top + height).
struct Box {
  int left = 0, top = 0, width = 0, height = 0;
};

struct Size {
  int width = 0, height = 0;
};

// A half-open range of samples, blocks or MCUs along one axis.
struct Range {
  int begin = 0, end = 0;
  int size() const { return end - begin; }
  bool contains(int i) const { return i >= begin && i < end; }
};

constexpr int kMaxComponents = 3;        // gray, or three; CMYK is re-encoded by `prepare`
// Of one image: bounds what a lying header can allocate. Twice what Pillow opens, as
// `prepare --max-side` shrinks larger ones (MAX_SHRUNK_PIXELS in fastselfie/data/sources/base.py).
constexpr int64_t kMaxPixels = 2 * 178'956'970;
constexpr int kMaxSide = 65535;  // of an image or a box: what a JPEG can have
constexpr int kMaxOutputSide = kMaxSide;  // an image decodes at its own size

constexpr int ceil_div(int a, int b) { return a / b + (a % b > 0); }
constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

inline void require_box_inside(const Box& box, Size image) {
  if (box.width < 1 || box.height < 1 || box.left < 0 || box.top < 0 ||
      box.left > image.width - box.width || box.top > image.height - box.height) {
    throw Error("box (left " + std::to_string(box.left) + ", top " + std::to_string(box.top) +
                ", " + std::to_string(box.width) + "x" + std::to_string(box.height) +
                ") is not inside the image (" + std::to_string(image.width) + "x" +
                std::to_string(image.height) + ")");
  }
}

}  // namespace fastselfie::jpeg
