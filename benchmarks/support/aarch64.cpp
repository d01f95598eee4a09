// Everything that the C++ engine makes of the given JPEG files, as a line of name and hash each, so
// that two machines can be compared. Built and run by benchmarks/aarch64.py.
//
//   aarch64 KERNELS FILE...
//
// KERNELS: one of the instruction sets of this processor, or auto. What is refused is a line too,
// with the message.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>

#include "../../kernels/host/host.hpp"
#include "../../kernels/jpeg/batch.hpp"
#include "../../kernels/jpeg/coefficients.hpp"
#include "../../kernels/jpeg/transcode.hpp"

using namespace fastselfie;

namespace {

using Buffer = std::vector<uint8_t>;

// FNV-1a, 64 bits.
struct Hash {
  uint64_t value = 0xcbf29ce484222325;
  template <typename T>
  void add(const T* data, size_t count) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(data);
    for (size_t i = 0; i < count * sizeof(T); ++i) value = (value ^ bytes[i]) * 0x100000001b3;
  }
  template <typename T>
  void add(const std::vector<T>& values) {
    add(values.data(), values.size());
  }
};

// A line: what `call` puts into the hash, or why it refused.
template <typename Call>
void line(const std::string& name, Call&& call) {
  Hash hash;
  try {
    call(hash);
    std::printf("%s %016llx\n", name.c_str(), static_cast<unsigned long long>(hash.value));
  } catch (const jpeg::Error& error) {
    std::printf("%s refused: %s\n", name.c_str(), error.what());
  }
}

// The whole image, a part inside, odd ones at the edges, a single pixel.
std::vector<jpeg::Box> boxes(jpeg::Size image) {
  const int w = image.width, h = image.height;
  return {{0, 0, w, h},
          {w / 4, h / 4, (w + 1) / 2, (h + 1) / 2},
          {w / 3, h / 5, w - w / 3, h - h / 5},
          {0, h / 2, std::min(w, 5), h - h / 2},
          {w - 1, h - 1, 1, 1}};
}

// Enlarged, as large, and so small that 4, 2 and 1 samples a block side are decoded.
std::vector<jpeg::Size> sizes(const jpeg::Box& box) {
  std::vector<jpeg::Size> found{{box.width * 3 / 2 + 1, box.height + 3}};
  for (const int scale : {1, 2, 3, 5, 9}) {
    found.push_back({jpeg::ceil_div(box.width, scale), jpeg::ceil_div(box.height, scale)});
  }
  return found;
}

void decoded(const std::string& name, jpeg::Bytes data, jpeg::Size image) {
  jpeg::Decoder decoder;
  for (const auto engine : {jpeg::Engine::kAuto, jpeg::Engine::kLibjpeg}) {
    const std::string of = name + (engine == jpeg::Engine::kAuto ? " auto" : " libjpeg");
    int number = 0;
    for (const jpeg::Box& box : boxes(image)) {
      line(of + " resized " + std::to_string(number), [&](Hash& hash) {
        for (const jpeg::Size size : sizes(box)) {
          for (const bool flip : {false, true}) {
            Buffer out(size_t{3} * size.width * size.height);
            decoder.decode_resized(data, box, flip, size, out.data(), engine);
            hash.add(out);
          }
        }
      });
      line(of + " planes " + std::to_string(number++), [&](Hash& hash) {
        for (const int block : {8, 4, 2, 1}) {
          for (const auto& view : decoder.decode_planes(data, box, block, engine)) {
            for (int x = 0; x < view.size.width; ++x) {
              for (int y = 0; y < view.size.height; ++y) {
                hash.add(view.plane.at(view.plane.first_x + x, view.plane.first_y + y), 1);
              }
            }
          }
        }
      });
    }
  }
}

void jpegs(const std::string& name, jpeg::Bytes data) {
  jpeg::Size image{16, 16};
  line(name + " header", [&](Hash& hash) {
    const jpeg::Header header = jpeg::parse_header(data);
    image = header.size;
    hash.add(&image, 1);
    hash.add(&header.restart_interval, 1);
  });
  decoded(name, data, image);
  line(name + " coefficients", [&](Hash& hash) {
    for (const auto& component : jpeg::read_coefficients(data)) hash.add(component.values);
  });
  for (const int interval : {0, 1, 3}) {
    const std::string as = name + " transcoded " + std::to_string(interval);
    Buffer lossless;
    line(as, [&](Hash& hash) {
      lossless = jpeg::transcode(data, interval);
      hash.add(lossless);
    });
    for (const jpeg::Box& box : lossless.empty() ? std::vector<jpeg::Box>{} : boxes(image)) {
      line(as + " crop", [&](Hash& hash) {
        const auto small = jpeg::crop({lossless.data(), lossless.size()}, box);
        if (!small) throw jpeg::Error("cannot be cut");
        hash.add(small->jpeg);
        hash.add(&small->left, 1);
        hash.add(&small->top, 1);
      });
    }
  }
}

void batch(const std::vector<Buffer>& files) {
  std::vector<jpeg::Item> items(files.size());
  for (size_t i = 0; i < files.size(); ++i) {
    items[i].bytes = {files[i].data(), files[i].size()};
    items[i].box = {1, 1, 12, 7};
    items[i].flip = i % 2 == 1;
  }
  line("batch", [&](Hash& hash) {
    Buffer out(size_t{3} * 9 * 8 * files.size());
    jpeg::BatchPool pool(2);
    const auto whole = std::make_shared<jpeg::Batch>(items, jpeg::Size{9, 8}, out.data());
    pool.submit(whole);
    for (const auto& failure : pool.wait(*whole, true)) {
      hash.add(&failure.index, 1);
      hash.add(failure.message.data(), failure.message.size());
    }
    hash.add(out);
  });
}

// Numbers in [0, 1) of a stream of their own.
std::vector<double> drawn(uint32_t purpose, size_t count) {
  const int64_t epoch = 3, sample = 5;
  std::vector<double> out(count);
  host::uniform(7, purpose, &epoch, &sample, 1, count, out.data());
  return out;
}

template <typename Number>
std::vector<Number> numbers(uint32_t purpose, size_t count) {
  std::vector<Number> out(count);
  const std::vector<double> values = drawn(purpose, count);
  for (size_t i = 0; i < count; ++i) {
    const auto value = static_cast<float>(4 * values[i] - 2);
    if constexpr (sizeof(Number) == 2) {
      uint32_t bits;  // the upper half of a float is a bfloat16
      std::memcpy(&bits, &value, sizeof bits);
      out[i] = static_cast<Number>(bits >> 16);
    } else {
      out[i] = value;
    }
  }
  return out;
}

Buffer pixels(uint32_t purpose, size_t count) {
  Buffer out(count);
  const std::vector<double> values = drawn(purpose, count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(256 * values[i]);
  return out;
}

void raw_pixels() {
  const jpeg::Size image{37, 23};
  const Buffer levels = pixels(1, size_t{3} * image.width * image.height);
  jpeg::Decoder decoder;
  for (const auto padding : {jpeg::Padding::kNone, jpeg::Padding::kZero, jpeg::Padding::kReflect}) {
    line("raw padding " + std::to_string(static_cast<int>(padding)), [&](Hash& hash) {
      const jpeg::Box box = padding == jpeg::Padding::kNone ? jpeg::Box{3, 2, 29, 20}
                                                            : jpeg::Box{-4, -3, 44, 30};
      for (const jpeg::Size size : sizes(box)) {
        Buffer out(size_t{3} * size.width * size.height);
        decoder.resize_raw(levels.data(), image, box, padding, true, size, out.data());
        hash.add(out);
      }
    });
  }
}

template <typename Number>
void host_kernels(const std::string& of) {
  line("patchify " + of, [&](Hash& hash) {
    const Buffer levels = pixels(2, 2 * 24 * 24 * 3);
    const bool flips[] = {false, true};
    std::vector<int64_t> order;
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t k = 0; k < 9; ++k) order.push_back((5 * k + b) % 9);
    }
    const float scale[] = {0.017f, 0.0175f, 0.0174f}, offset[] = {-2.1f, -2.03f, -1.8f};
    std::vector<Number> out(levels.size());
    host::loops<Number>().patchify({levels.data(), 2, 24, 24}, flips, order.data(), 9,
                           {8, 8, nullptr, nullptr, scale, offset, false}, 2, out.data());
    hash.add(out);
    std::vector<int64_t> corners;
    bool grey[18];
    std::vector<float> scales, offsets;
    for (int64_t k = 0; k < 18; ++k) {
      grey[k] = k % 3 == 0;
      for (int64_t axis : {k % 4, k % 3}) corners.push_back(axis);
      for (int64_t c = 0; c < 3; ++c) {
        scales.push_back(scale[(c + k) % 3]);  // no arithmetic, which a compiler may contract
        offsets.push_back(offset[(c + k) % 3]);
      }
    }
    out.resize(size_t{2} * 9 * 5 * 5 * 3);
    host::loops<Number>().patchify({levels.data(), 2, 24, 24}, flips, order.data(), 9,
                           {8, 5, corners.data(), grey, scales.data(), offsets.data(), true}, 2,
                           out.data());
    hash.add(out);
  });
  line("norm_relu " + of, [&](Hash& hash) {
    constexpr int64_t kRows = 531, kChannels = 37;
    const auto x = numbers<Number>(3, kRows * kChannels);
    const auto gradient = numbers<Number>(4, kRows * kChannels);
    const auto weight = numbers<float>(5, kChannels), bias = numbers<float>(6, kChannels);
    const host::Activations<Number> given{x.data(), kRows, kChannels};
    std::vector<float> found(4 * kChannels), sums(2 * kChannels);
    const host::Statistics statistics{&found[0], &found[kChannels], &found[2 * kChannels],
                                      &found[3 * kChannels]};
    std::vector<Number> out(x.size());
    host::loops<Number>().norm_relu_forward(given, weight.data(), bias.data(), 1e-5, 2, statistics,
                                            out.data());
    hash.add(out);
    hash.add(found);
    host::loops<Number>().norm_relu_backward(given, gradient.data(), weight.data(), statistics, 1e-5,
                                             2, out.data(), sums.data(), &sums[kChannels]);
    hash.add(out);
    hash.add(sums);
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s KERNELS FILE...\n", argv[0]);
    return 2;
  }
  jpeg::select_kernels(argv[1]);
  host::select_kernels(argv[1]);
  std::fprintf(stderr, "%s\n", jpeg::kernels().name);
  std::vector<Buffer> files;
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    const std::string path = argv[i];
    jpegs(path.substr(path.rfind('/') + 1), {files.back().data(), files.back().size()});
  }
  batch(files);
  raw_pixels();
  line("philox", [&](Hash& hash) { hash.add(drawn(8, 1001)); });
  host_kernels<float>("float");
  host_kernels<uint16_t>("bfloat16");
}
