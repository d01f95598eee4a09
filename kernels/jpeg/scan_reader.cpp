// A baseline scan as symbols: see scan_reader.hpp.
#include "scan_reader.hpp"

#include <algorithm>
#include <cstring>

#include "kernels.hpp"

namespace fastselfie::jpeg {
namespace {

constexpr const char* kBadCode = "corrupt scan: a bad Huffman code";
constexpr const char* kLeftOver = "corrupt scan: bytes left over in an interval";
// No mean of 8-bit samples, eight times as large in a DCT, is further from zero.
constexpr int kLargestMean = 8 * 128;

void require(bool good, const char* fault) {
  if (!good) throw Error(fault);
}

// Adds a block's tokens. `values`: 64 in zigzag order, without the DC.
void add_ac_tokens(const int16_t* values, int component, Tokens& tokens) {
  int end = 1;  // behind the last value that is not zero
  for (int four = 0; four < 64; four += 4) {
    uint64_t any;
    std::memcpy(&any, values + four, 8);
    if (any == 0) continue;
    for (int k = std::max(four, 1); k < four + 4; ++k) {
      if (values[k] == 0) continue;
      tokens.add_ac(component, k - end, values[k]);
      end = k + 1;
    }
  }
  if (end < 64) tokens.add_end_of_block(component);
}

// Whether the last byte that was begun is filled up with equal bits, as an encoder does. A reader
// that lost its way ends anywhere.
bool ends_in_filler(const BitPosition& at) {
  const ptrdiff_t left = at.bits_left();
  const int filler = (1 << (left & 7)) - 1;
  const int bits = at.end[-1 - left / 8] & filler;
  return bits == 0 || bits == filler;
}

}  // namespace

void read_scan(Bytes jpeg, const Header& header, Tokens& tokens) {
  std::vector<Bytes> intervals;
  // Every interval is read to its end, so however the scan ends, nothing is missing.
  static_cast<void>(index_intervals(jpeg, header, intervals));

  const auto tables = std::make_unique<ScanTables>();
  tables->build(header);
  const BlockOrder order(header);
  const int mcus_per_row = header.mcus_per_row(), all = header.mcu_count();
  alignas(64) int16_t coefficients[kChunkBlocks * 64] = {};
  std::vector<uint8_t> bytes;
  Tokens unwanted(1, 0);  // of the blocks that only fill up an MCU
  int mcu = 0;
  bool doubtful = false;
  std::array<int, kMaxComponents> largest_dc{};
  for (const Bytes& interval : intervals) {
    const size_t size = unstuff(interval, bytes);
    BitPosition at{0, 0, bytes.data(), bytes.data() + size};
    int dc[kMaxComponents] = {};
    const int end = header.restart_interval ? std::min(mcu + header.restart_interval, all) : all;
    while (mcu < end) {
      const int chunk_end = std::min(mcu + tables->chunk_mcus(), end);
      const int blocks = (chunk_end - mcu) * tables->blocks_per_mcu();
      const bool good = kernels().decode_coefficients(*tables, blocks, at, coefficients);
      require(at.bits_left() >= 0, "corrupt scan: an interval ends too early");
      require(good, kBadCode);
      const int16_t* block = coefficients;
      const auto add = [&](int i, Tokens& to) {
        dc[i] = static_cast<int16_t>(dc[i] + block[0]);
        largest_dc[i] = std::max(largest_dc[i], std::abs(dc[i]));
        to.add_dc(i, dc[i]);
        add_ac_tokens(block, i, to);
        block += 64;
      };
      for (; mcu < chunk_end; ++mcu) {
        tokens.begin_mcu();
        order.visit(
            mcu % mcus_per_row, mcu / mcus_per_row, [&](int i, int, int) { add(i, tokens); },
            [&](int i) {
              add(i, unwanted);
              tokens.add_filler(i);
            });
        unwanted.clear();
      }
      std::memset(coefficients, 0, sizeof coefficients);
    }
    if (at.bits_left() >= 8) {  // cameras write zeros there, and a desynchronised reader ends so
      doubtful = true;
      require(ends_in_filler(at), kLeftOver);
    }
  }
  for (int i = 0; doubtful && i < header.num_components; ++i) {
    const int step = header.quant[header.components[i].quant_table][0];
    require(largest_dc[i] * step <= kLargestMean + step, kLeftOver);
  }
}

}  // namespace fastselfie::jpeg
