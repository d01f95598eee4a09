// A baseline scan as symbols: see scan_reader.hpp.
#include "scan_reader.hpp"

#include <algorithm>
#include <cstring>

#include "huffman.hpp"

namespace fastselfie::jpeg {
namespace {

#include "symbols.inl"

constexpr const char* kBadCode = "corrupt scan: a bad Huffman code";
constexpr const char* kLeftOver = "corrupt scan: bytes left over in an interval";
// No mean of 8-bit samples, eight times as large in a DCT, is further from zero.
constexpr int kLargestMean = 8 * 128;

void require(bool good, const char* fault) {
  if (!good) throw Error(fault);
}

struct Tables {
  std::array<HuffmanTable, 4> dc, ac;
};

void read_block(const HuffmanTable& dc_table, const HuffmanTable& ac_table, BitReader& reader,
                int component, int& dc, Tokens& tokens) {
  reader.refill();
  uint32_t entry = next_entry(dc_table, reader);
  require(entry != 0, kBadCode);
  dc = static_cast<int16_t>(dc + entry_value(entry));
  tokens.add_dc(component, dc);
  int k = 1, end = 1;  // `end`: behind the last value that is not zero
  const auto step = [&] {
    entry = next_entry(ac_table, reader);
    k += entry >> 8 & 0xFF;
    // Zeros are written where a value follows: a file may hold runs of them that lead nowhere.
    if (const int value = entry_value(entry)) {
      tokens.add_ac(component, k - 1 - end, value);
      end = k;
    }
  };
  // As in decode_block(), two symbols fit one refill.
  for (;;) {
    step();
    if (entry == 0 || k >= 64) break;
    reader.refill();
    step();
    if (entry == 0 || k >= 64) break;
  }
  require(entry != 0 && (k == 64 || k >= HuffmanTable::kEndOfBlock), kBadCode);
  if (end < 64) tokens.add_end_of_block(component);
}

}  // namespace

void read_scan(Bytes jpeg, const Header& header, Tokens& tokens) {
  std::vector<Bytes> intervals;
  // Every interval is read to its end, so however the scan ends, nothing is missing.
  static_cast<void>(index_intervals(jpeg, header, intervals));

  const auto tables = std::make_unique<Tables>();
  for (int i = 0; i < header.num_components; ++i) {
    const Component& c = header.components[i];
    tables->dc[c.dc_table].build(header.dc_specs[c.dc_table], false);
    tables->ac[c.ac_table].build(header.ac_specs[c.ac_table], true);
    require(header.quant_defined[c.quant_table],
            "corrupt header: a quantisation table is missing");
  }

  const BlockOrder order(header);
  const int mcus_per_row = header.mcus_per_row(), all = header.mcu_count();
  std::vector<uint8_t> bytes;
  Tokens unwanted(1, 0);  // of the blocks that only fill up an MCU
  int mcu = 0;
  bool doubtful = false;
  std::array<int, kMaxComponents> largest_dc{};
  for (const Bytes& interval : intervals) {
    const size_t size = unstuff(interval, bytes);
    BitReader reader(bytes.data(), size);
    int dc[kMaxComponents] = {};
    const auto read = [&](int i, Tokens& to) {
      const Component& c = header.components[i];
      read_block(tables->dc[c.dc_table], tables->ac[c.ac_table], reader, i, dc[i], to);
      largest_dc[i] = std::max(largest_dc[i], std::abs(dc[i]));
    };
    const int end = header.restart_interval ? std::min(mcu + header.restart_interval, all) : all;
    for (; mcu < end; ++mcu) {
      tokens.begin_mcu();
      order.visit(
          mcu % mcus_per_row, mcu / mcus_per_row, [&](int i, int, int) { read(i, tokens); },
          [&](int i) {
            read(i, unwanted);
            tokens.add_filler(i);
          });
      unwanted.clear();
      require(reader.bits_left() >= 0, "corrupt scan: an interval ends too early");
    }
    if (reader.bits_left() >= 8) {  // cameras write zeros there, and a desynchronised reader ends so
      doubtful = true;
      require(reader.ends_in_filler(), kLeftOver);
    }
  }
  for (int i = 0; doubtful && i < header.num_components; ++i) {
    const int step = header.quant[header.components[i].quant_table][0];
    require(largest_dc[i] * step <= kLargestMean + step, kLeftOver);
  }
}

}  // namespace fastselfie::jpeg
