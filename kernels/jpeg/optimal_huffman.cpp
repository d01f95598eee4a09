// Huffman's algorithm, and the limit of 16 bits: see optimal_huffman.hpp.
#include "optimal_huffman.hpp"

#include <algorithm>
#include <functional>
#include <numeric>

namespace fastselfie::jpeg {
namespace {

// One symbol more than there are, so that no real one gets the code of all ones, which is reserved.
constexpr int kReserved = 256;
constexpr int kLeaves = kReserved + 1;

// Each symbol's length; 0: it does not occur.
std::array<int, kLeaves> code_lengths(const uint32_t* counts) {
  // Trees, the lightest last; among equals the one of the larger index is taken first. A tree made
  // of two has the first one's index.
  constexpr int kIndexBits = 9;
  const auto index = [](uint64_t tree) {
    return kReserved - static_cast<int>(tree & ((1 << kIndexBits) - 1));
  };
  std::vector<uint64_t> trees;
  for (int i = 0; i < kLeaves; ++i) {
    const uint64_t count = i == kReserved ? 1 : counts[i];
    if (count > 0) trees.push_back(count << kIndexBits | static_cast<uint64_t>(kReserved - i));
  }
  std::sort(trees.begin(), trees.end(), std::greater<>());

  std::array<int, kLeaves> lengths{}, next;  // `next`: the chain of a tree's symbols
  next.fill(-1);
  while (trees.size() > 1) {
    const uint64_t first = trees.back(), second = trees[trees.size() - 2];
    trees.resize(trees.size() - 2);
    int last = index(first);
    for (int i = last; i >= 0; i = next[i]) ++lengths[last = i];
    next[last] = index(second);
    for (int i = index(second); i >= 0; i = next[i]) ++lengths[i];
    const uint64_t both = first + (second >> kIndexBits << kIndexBits);
    trees.insert(std::upper_bound(trees.begin(), trees.end(), both, std::greater<>()), both);
  }
  return lengths;
}

// T.81 figure K.3: two codes that are too long become one a bit shorter, and a code one bit longer
// than some shorter one takes the other's place.
void limit_lengths(std::array<int, kLeaves>& counts) {
  for (int length = kLeaves - 1; length > 16; --length) {
    while (counts[length] > 0) {
      int shorter = length - 2;
      while (counts[shorter] == 0) --shorter;
      counts[length] -= 2;
      counts[length - 1] += 1;
      counts[shorter + 1] += 2;
      counts[shorter] -= 1;
    }
  }
}

}  // namespace

HuffmanSpec optimal_huffman(const uint32_t* counts) {
  const std::array<int, kLeaves> lengths = code_lengths(counts);
  std::array<int, kLeaves> of_length{}, place{};  // how many codes, and where their symbols begin
  for (const int length : lengths) ++of_length[length];
  of_length[0] = 0;
  std::partial_sum(of_length.begin(), of_length.end() - 1, place.begin() + 1);

  // By the length that they have without the limit: the rarest still get the longest codes.
  HuffmanSpec spec;
  spec.defined = true;
  for (int i = 0; i < kReserved; ++i) {
    if (lengths[i] > 0) spec.symbols[place[lengths[i]]++] = static_cast<uint8_t>(i);
  }
  limit_lengths(of_length);
  int longest = 16;
  while (of_length[longest] == 0) --longest;
  --of_length[longest];  // kReserved's: the last of the longest
  std::copy_n(&of_length[1], 16, spec.counts.begin());
  return spec;
}

}  // namespace fastselfie::jpeg
