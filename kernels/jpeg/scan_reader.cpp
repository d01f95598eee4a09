// A baseline scan as symbols: see scan_reader.hpp.
#include "scan_reader.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "huffman.hpp"

namespace fastselfie::jpeg {
namespace {

#include "symbols.inl"

// Nobody sees the message: libjpeg reads the file instead.
void require(bool plain) {
  if (!plain) throw Error("not a plain baseline scan");
}

struct Tables {
  std::array<HuffmanTable, 4> dc, ac;
};

void build(const HuffmanSpec& spec, bool ac, HuffmanTable& table) {
  require(spec.defined);
  table.build(spec, ac);
  // Two rules of the standard that libjpeg insists on and HuffmanTable can do without: no code is
  // all ones, no DC symbol is above 15.
  const int count = std::accumulate(spec.counts.begin(), spec.counts.end(), 0);
  const auto end = spec.symbols.begin() + count;
  require(table.limit[16] <= 0xFFFF);
  require(ac || std::all_of(spec.symbols.begin(), end, [](int symbol) { return symbol <= 15; }));
}

void read_block(const HuffmanTable& dc_table, const HuffmanTable& ac_table, BitReader& reader,
                int component, int& dc, Tokens& tokens) {
  reader.refill();
  uint32_t entry = next_entry(dc_table, reader);
  require(entry != 0);
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
  require(entry != 0 && (k == 64 || k >= HuffmanTable::kEndOfBlock));
  if (end < 64) tokens.add_end_of_block(component);
}

}  // namespace

void read_scan(Bytes jpeg, const Header& header, Tokens& tokens) {
  std::vector<Bytes> intervals;
  index_intervals(jpeg, header, intervals);
  const Bytes& last = intervals.back();
  require(last.data[last.size + 1] == 0xD9);

  const auto tables = std::make_unique<Tables>();
  for (int i = 0; i < header.num_components; ++i) {
    const Component& c = header.components[i];
    build(header.dc_specs[c.dc_table], false, tables->dc[c.dc_table]);
    build(header.ac_specs[c.ac_table], true, tables->ac[c.ac_table]);
    require(header.quant_defined[c.quant_table]);
  }

  const BlockOrder order(header);
  const int mcus_per_row = header.mcus_per_row(), all = header.mcu_count();
  std::vector<uint8_t> bytes;
  Tokens unwanted(1, 0);  // of the blocks that only fill up an MCU
  int mcu = 0;
  for (const Bytes& interval : intervals) {
    const size_t size = unstuff(interval, bytes);
    BitReader reader(bytes.data(), size);
    int dc[kMaxComponents] = {};
    const auto read = [&](int i, Tokens& to) {
      const Component& c = header.components[i];
      read_block(tables->dc[c.dc_table], tables->ac[c.ac_table], reader, i, dc[i], to);
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
      require(reader.bits_left() >= 0);
    }
    require(reader.bits_left() < 8);
  }
}

}  // namespace fastselfie::jpeg
