// One thread's decoder: JPEG or raw pixels, a box of them, resized to RGB.
#pragma once

#include "huffman.hpp"
#include "kernels.hpp"
#include "libjpeg.hpp"

namespace fastselfie::jpeg {

enum class Engine {
  kAuto,     // the fast decoder where it can, libjpeg elsewhere
  kLibjpeg,  // the reference
};

// What lies outside of a raw image, for pad-and-crop.
enum class Padding {
  kNone,  // nothing: the box must lie inside
  kZero,
  kReflect,  // without repeating the edge, as numpy's and torch's "reflect"
};

// Holds every buffer it needs from image to image: nothing is allocated once they have grown.
class Decoder {
 public:
  // out: size.height rows of size.width RGB pixels. Antialiased bilinear, like Pillow's crop(box)
  // followed by resize(size, BILINEAR). Throws Error; `rgb` may then hold anything.
  void decode_resized(Bytes jpeg, const Box& box, bool flip, Size size, uint8_t* rgb,
                      Engine engine = Engine::kAuto);

  // The same of raw pixels, `image.height` rows of `image.width` RGB pixels.
  void resize_raw(const uint8_t* pixels, Size image, const Box& box, Padding padding, bool flip,
                  Size size, uint8_t* rgb);

  // The planes that cover `box`, at `block_size` of 8, 4, 2 or 1 samples a block side: for tests.
  // Valid until the next call.
  struct PlaneView {
    Plane plane;
    Size size;
  };
  std::vector<PlaneView> decode_planes(Bytes jpeg, const Box& box, int block_size, Engine engine);

 private:
  void decode(Bytes jpeg, Engine engine);
  // False where the file is damaged or unusual: only check() tells which. `checked`: it has passed,
  // so whatever is left over behind the blocks is no sign of damage.
  bool decode_fast(Bytes jpeg, bool checked);
  void prepare_scan();
  void allocate_plane(int index, Range xs, Range ys, bool by_rows);
  void resample(Size size, uint8_t* rgb);
  void convert(const Box& box, uint8_t* rgb);
  void gather_raw(const uint8_t* pixels, Size image, const Box& box, Padding padding);

  Header header_;
  Plan plan_;
  std::array<Plane, kMaxComponents> planes_;
  std::array<std::vector<uint8_t>, kMaxComponents> plane_bytes_, row_bytes_;

  ScanTables tables_;
  Scan scan_;
  std::vector<Bytes> intervals_;
  std::array<std::vector<uint8_t>, kLanes> unstuffed_;
  std::unique_ptr<LibjpegDecoder> libjpeg_;  // made when first needed

  std::vector<int> raw_x_, raw_y_;
};

}  // namespace fastselfie::jpeg
