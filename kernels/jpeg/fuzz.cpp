// Fuzzing: damaged JPEG files through every entry point, raw pixels and the batch pool among them.
// Built and run by benchmarks/fuzz.py, under AddressSanitizer and UBSan, or under ThreadSanitizer.
// An Error is an answer; a crash or a sanitizer's report is a fault.
//
//   fuzz INPUTS SEED FILE...
//
// mutates the given files by itself. Prints how many inputs there were, how many calls on them
// succeeded, and how many batches were closed before their end. Compiled with JPEG_LIBFUZZER and
// -fsanitize=fuzzer, the program is libFuzzer's instead: its mutations follow the coverage, and the
// bytes of an input decide all else, so that a saved input reproduces its fault.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>
#include <thread>

#include "batch.hpp"
#include "coefficients.hpp"
#include "transcode.hpp"

using namespace fastselfie::jpeg;

namespace {

using Random = std::mt19937_64;
using Buffer = std::vector<uint8_t>;

int below(Random& random, int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); }

#if !defined(JPEG_LIBFUZZER)
// A few changes, most of them where the structure is: in the header.
void mutate(Buffer& data, Random& random) {
  for (int changes = 1 + below(random, 6); changes > 0 && data.size() > 4; --changes) {
    const int size = static_cast<int>(data.size());
    const int at = below(random, below(random, 2) ? std::min(size, 700) : size);
    switch (below(random, 6)) {
      case 0: data[at] ^= 1 << below(random, 8); break;
      case 1: data[at] = static_cast<uint8_t>(random()); break;
      case 2: data[at] = below(random, 2) ? 0xFF : 0; break;
      case 3: data.resize(at); break;
      case 4:
        data.erase(data.begin() + at, data.begin() + std::min(size, at + below(random, 40)));
        break;
      default:
        data.insert(data.begin() + at, data.begin(), data.begin() + below(random, 40) % size);
    }
  }
}
#endif

// The bytes in a block of exactly their size, so that AddressSanitizer sees one byte too far.
struct Exact {
  explicit Exact(const Buffer& data) : bytes(new uint8_t[data.size()]), size(data.size()) {
    std::memcpy(bytes.get(), data.data(), size);
  }
  std::unique_ptr<uint8_t[]> bytes;
  size_t size;
};

// What a Python caller has checked: any box inside the image, and any output size.
struct Request {
  Request(Size image, Random& random)
      : size{1 + below(random, 80), 1 + below(random, 80)},
        box{below(random, image.width), below(random, image.height), 1, 1},
        flip(below(random, 2) != 0) {
    box.width += below(random, image.width - box.left);
    box.height += below(random, image.height - box.top);
    // Half of them in the size of the box, which the decoder treats apart.
    if (below(random, 2) && box.width <= 512 && box.height <= 512) size = {box.width, box.height};
  }
  Size size;
  Box box;
  bool flip;
};

// The same for an output: allocated for each call, so that no byte behind it is anybody's.
struct Output : Exact {
  explicit Output(Size size) : Exact(Buffer(size_t{3} * size.width * size.height)) {}
};

template <typename Call>
int succeeds(Call&& call) {
  try {
    call();
    return 1;
  } catch (const Error&) {
    return 0;
  }
}

// The small JPEG must decode, and to nothing but itself.
int exercise_crop(Bytes jpeg, const Request& r, Decoder& decoder) {
  std::optional<Crop> small;
  if (!succeeds([&] { small = crop(jpeg, r.box); }) || !small) return 0;
  const Exact exact(small->jpeg);
  const Box box{small->left, small->top, r.box.width, r.box.height};
  require_box_inside(box, parse_header({exact.bytes.get(), exact.size}).size);
  const Output out(r.size);
  return 1 + succeeds([&] {
           decoder.decode_resized({exact.bytes.get(), exact.size}, box, r.flip, r.size,
                                  out.bytes.get());
         });
}

// check() must pass whatever transcode() takes.
int exercise_transcode(Bytes jpeg, Random& random) {
  const int done = succeeds([&] { transcode(jpeg, 0); });
  if (succeeds([&] { check(jpeg); }) < done) std::abort();
  return done + succeeds([&] { transcode(jpeg, 1 + below(random, 8)); });
}

int exercise_jpeg(Bytes jpeg, Decoder& decoder, Random& random) {
  Header header;
  if (!succeeds([&] { header = parse_header(jpeg); })) return 0;
  const Request r(header.size, random);
  const Output output(r.size);
  uint8_t* const out = output.bytes.get();
  int done = succeeds([&] { decoder.decode_resized(jpeg, r.box, r.flip, r.size, out); });
  done += exercise_crop(jpeg, r, decoder);
  switch (below(random, 4)) {  // libjpeg is slow under sanitizers: one of these at a time
    case 0:
      return done + succeeds([&] {
               decoder.decode_resized(jpeg, r.box, r.flip, r.size, out, Engine::kLibjpeg);
             });
    case 1: return done + exercise_transcode(jpeg, random);
    case 2: return done + succeeds([&] { read_coefficients(jpeg); });
    default:
      return done + succeeds([&] {
               decoder.decode_planes(jpeg, r.box, 1 << below(random, 4), Engine::kAuto);
             });
  }
}

// A number that is now and then one that nobody expects.
int wild(Random& random, int n) {
  constexpr int kExtremes[] = {INT32_MIN, INT32_MIN + 1, -1, 0, 65535, 1 << 24, INT32_MAX};
  return below(random, 16) ? below(random, n) - n / 4 : kExtremes[below(random, 7)];
}

Box wild_box(Random& random, int n) {
  return {wild(random, n), wild(random, n), wild(random, n), wild(random, n)};
}

int exercise_raw(Decoder& decoder, Random& random) {
  const Size image{1 + below(random, 40), 1 + below(random, 40)};
  const Output pixels(image);
  const Size size{1 + below(random, 40), 1 + below(random, 40)};
  const Output out(size);
  const auto padding = static_cast<Padding>(below(random, 3));
  const Box box = wild_box(random, 60);
  return succeeds([&] {
    decoder.resize_raw(pixels.bytes.get(), image, box, padding, below(random, 2), size,
                       out.bytes.get());
  });
}

// One input that is no batch: a damaged file, or now and then raw pixels. Returns how many calls
// succeeded.
int exercise(Bytes data, Decoder& decoder, Random& random) {
  static const std::vector<std::string> sets = available_kernels();
  select_kernels(sets[below(random, static_cast<int>(sets.size()))]);
  return below(random, 8) ? exercise_jpeg(data, decoder, random) : exercise_raw(decoder, random);
}

#if !defined(JPEG_LIBFUZZER)
// Batches of damaged files in one buffer, with pointers that may leave it, as a damaged .beton has
// them; submitted, waited for and closed by several threads at once, often before the end.
struct Storm {
  long inputs = 0, done = 0, closed = 0;

  void blow(const std::vector<Buffer>& corpus, Random& random) {
    constexpr int kBatches = 4, kItems = 6;
    Buffer file;
    std::vector<Item> items;
    std::vector<std::pair<uint64_t, uint64_t>> places;
    for (int i = 0; i < kBatches * kItems; ++i) {
      Buffer data = corpus[below(random, static_cast<int>(corpus.size()))];
      if (below(random, 3)) mutate(data, random);
      places.emplace_back(file.size(), data.size());
      file.insert(file.end(), data.begin(), data.end());
    }
    const Exact exact(file);
    const Size size{1 + below(random, 40), 1 + below(random, 40)};
    for (auto& [offset, length] : places) {
      if (!below(random, 8)) (below(random, 2) ? offset : length) = random() >> below(random, 64);
      Item item;
      item.bytes = slice({exact.bytes.get(), exact.size}, offset, length);
      item.kind = static_cast<Kind>(below(random, 4) ? 0 : below(random, 4));
      item.raw_size = {wild(random, 40), wild(random, 40)};
      item.box = below(random, 2) ? wild_box(random, 60) : Box{0, 0, 16, 16};
      item.flip = below(random, 2) != 0;
      items.push_back(item);
    }
    BatchPool pool(1 + below(random, 3));
    const Output out({size.width, size.height * kBatches * kItems});
    std::atomic<long> failed{0}, dropped{0};
    std::vector<std::thread> callers;
    const bool help = below(random, 2) != 0;
    for (int b = 0; b < kBatches; ++b) {
      std::vector<Item> mine(items.begin() + b * kItems, items.begin() + (b + 1) * kItems);
      uint8_t* const rows = out.bytes.get() + size_t{3} * size.width * size.height * kItems * b;
      callers.emplace_back([&pool, &failed, &dropped, mine, size, rows, help] {
        const auto batch = std::make_shared<Batch>(mine, size, rows);
        try {
          pool.submit(batch);
        } catch (const Error&) {  // closed already
          failed += kItems;
          ++dropped;
          return;
        }
        const std::vector<Failure> failures = pool.wait(*batch, help);
        failed += static_cast<long>(failures.size());
        dropped += !failures.empty() && failures.back().message == "the decoder was closed";
      });
    }
    if (below(random, 2)) {
      std::this_thread::sleep_for(std::chrono::microseconds(below(random, 500)));
      for (int i = 0; i < 2; ++i) callers.emplace_back([&pool] { pool.close(); });
    }
    for (std::thread& caller : callers) caller.join();
    inputs += kBatches * kItems;
    done += kBatches * kItems - failed;
    closed += dropped;
  }
};
#endif

}  // namespace

#if defined(JPEG_LIBFUZZER)
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Decoder decoder;
  Random random(std::accumulate(data, data + size, uint64_t{size}, [](uint64_t hash, uint8_t byte) {
    return (hash ^ byte) * 0x100000001b3;  // FNV-1a
  }));
  exercise({data, size}, decoder, random);  // libFuzzer's copy has exactly its size
  return 0;
}
#else
int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s INPUTS SEED FILE...\n", argv[0]);
    return 2;
  }
  std::vector<Buffer> corpus;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  Random random(std::strtoull(argv[2], nullptr, 10));
  Decoder decoder;
  Storm storm;
  const long wanted = std::strtol(argv[1], nullptr, 10);
  long alone = 0, done = 0;
  while (alone + storm.inputs < wanted) {
    if (!below(random, 100)) {  // a fifth of all inputs
      storm.blow(corpus, random);
      continue;
    }
    ++alone;
    Buffer data = corpus[below(random, static_cast<int>(corpus.size()))];
    mutate(data, random);
    const Exact exact(data);
    done += exercise({exact.bytes.get(), exact.size}, decoder, random);
  }
  std::printf("%ld inputs, %ld calls succeeded, %ld batches closed\n", alone + storm.inputs,
              done + storm.done, storm.closed);
}
#endif
