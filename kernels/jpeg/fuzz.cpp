// Fuzzing: seeded mutations of the given JPEG files through every entry point.
//
//   g++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -Wno-psabi
//       kernels/jpeg/{fuzz,batch,crop,decode,filter,header,huffman,kernels*,libjpeg_decode,plan,
//       transcode}.cpp -ljpeg -o fuzz
//   ./fuzz ITERATIONS SEED FILE...
//
// An Error is an answer; a crash or a sanitizer's report is a fault. Prints how many calls
// succeeded.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

#include "decode.hpp"

using namespace fastselfie::jpeg;

namespace {

using Random = std::mt19937_64;
using Buffer = std::vector<uint8_t>;

int below(Random& random, int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); }

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

// The bytes in a block of exactly their size, so that AddressSanitizer sees one byte too far.
struct Exact {
  explicit Exact(const Buffer& data) : bytes(new uint8_t[data.size()]), size(data.size()) {
    std::memcpy(bytes.get(), data.data(), size);
  }
  std::unique_ptr<uint8_t[]> bytes;
  size_t size;
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

int exercise(Bytes jpeg, Decoder& decoder, Random& random, Buffer& out) {
  Header header;
  if (!succeeds([&] { header = parse_header(jpeg); })) return 0;
  const Size size{1 + below(random, 80), 1 + below(random, 80)};
  Box box{below(random, header.size.width), below(random, header.size.height), 1, 1};
  box.width += below(random, header.size.width - box.left);
  box.height += below(random, header.size.height - box.top);
  out.assign(size_t{3} * size.width * size.height, 0);
  out.shrink_to_fit();
  const bool flip = below(random, 2);
  int done = succeeds([&] { decoder.decode_resized(jpeg, box, flip, size, out.data()); });
  switch (below(random, 4)) {  // libjpeg is slow under sanitizers: one of these at a time
    case 0:
      done += succeeds(
          [&] { decoder.decode_resized(jpeg, box, flip, size, out.data(), Engine::kLibjpeg); });
      break;
    case 1: done += succeeds([&] { transcode(jpeg, 1 + below(random, 8)); }); break;
    case 2: done += succeeds([&] { read_coefficients(jpeg); }); break;
    default: done += succeeds([&] { decoder.decode_planes(jpeg, box, 4, Engine::kAuto); });
  }
  return done;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s ITERATIONS SEED FILE...\n", argv[0]);
    return 2;
  }
  std::vector<Buffer> corpus;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  Random random(std::strtoull(argv[2], nullptr, 10));
  const std::vector<std::string> sets = available_kernels();
  Decoder decoder;
  Buffer out;
  long done = 0;
  const long iterations = std::strtol(argv[1], nullptr, 10);
  for (long i = 0; i < iterations; ++i) {
    Buffer data = corpus[below(random, static_cast<int>(corpus.size()))];
    mutate(data, random);
    const Exact exact(data);
    select_kernels(sets[below(random, static_cast<int>(sets.size()))]);
    done += exercise({exact.bytes.get(), exact.size}, decoder, random, out);
  }
  std::printf("%ld inputs, %ld calls succeeded\n", iterations, done);
}
