// Huffman tables in the form the fast decoder looks codes up in, and the undoing of byte stuffing.
#pragma once

#include "header.hpp"

namespace fastselfie::jpeg {

constexpr int kChunkBlocks = 24;  // decoded in one go; the coefficients of two lanes take 6 KB

// What one lookup of the next bits gives: up to two coefficients and the end of their block. The
// last coefficient's value is computed from the bits behind its code, so they need not lie inside of
// the lookup; the first's is in the entry. From the lowest bit:
//   bits 0-5    the bits that the entry takes, values included
//   bit 6       kEndOfBlock: the block ends
//   bit 7       kNextTable: another table decodes what follows (a DC is done, or the block ends)
//   bits 8-15   where the last value goes, from the coefficient index on
//   bits 16-21  the bits before the last value
//   bits 24-31  how far the coefficient index moves; kSlow: the lookup does not suffice
//   bits 32-47  the first value, signed
//   bits 48-53  64 less the last value's number of bits, or 0 if that number is 0
//   bits 56-63  where the first value goes
// The last value is written before the first. Without bits it is garbage; the first then goes to the
// same place. An entry of one coefficient has it as its last, and a zero as its first.
using HuffmanEntry = uint64_t;

struct HuffmanFields {
  static constexpr int kBits = 0, kLastPlace = 8, kBitsBefore = 16, kAdvance = 24, kFirstValue = 32,
                       kLastSize = 48, kFirstPlace = 56;
};

constexpr HuffmanEntry huffman_field(int value, int shift) {
  return static_cast<HuffmanEntry>(static_cast<uint16_t>(value)) << shift;
}

struct alignas(64) HuffmanTable {
  // 8 KB of lookup for a table of AC codes and 2 KB for one of DC codes: two of each, the coefficients
  // of two chunks (6 KB) and kNaturalPositions (3 KB) stay inside an L1 cache of 32 KB.
  static constexpr int kAcBits = 10, kDcBits = 8;
  static constexpr HuffmanEntry kEndOfBlock = 0x40, kNextTable = 0x80;
  static constexpr HuffmanEntry kSlow = huffman_field(64, HuffmanFields::kAdvance);

  std::array<HuffmanEntry, 1 << kAcBits> lookup;
  // Codes of length n, left-aligned to 16 bits, are below limit[n].
  std::array<uint32_t, 17> limit;
  std::array<int, 17> symbol_offset;
  std::array<uint8_t, 256> symbols;
  bool is_ac;

  // Throws where libjpeg refuses the table: no code is all ones, no DC symbol is above 15.
  void build(const HuffmanSpec& spec, bool ac);
};

// Where a file does not define table 0 or 1, libjpeg decodes with the standard's example. Frames of
// Motion JPEG come without tables.
void add_standard_huffman(bool ac, int table, HuffmanSpec& spec);

// Which table decodes what follows, and how far the next bits are shifted for its lookup, in one
// word: tables are aligned, so the six lowest bits of their address are free.
using TableStep = uintptr_t;

inline TableStep table_step(const HuffmanTable& table, int lookup_bits) {
  return reinterpret_cast<uintptr_t>(&table) | static_cast<uintptr_t>(64 - lookup_bits);
}
inline const HuffmanTable& table_of(TableStep step) {
  return *reinterpret_cast<const HuffmanTable*>(step & ~uintptr_t{63});
}

// kNaturalOrder of every block of a chunk.
constexpr std::array<uint16_t, kChunkBlocks * 64> natural_positions() {
  std::array<uint16_t, kChunkBlocks * 64> positions{};
  for (int i = 0; i < kChunkBlocks * 64; ++i) {
    positions[i] = static_cast<uint16_t>((i & ~63) + kNaturalOrder[i & 63]);
  }
  return positions;
}
inline constexpr std::array<uint16_t, kChunkBlocks * 64> kNaturalPositions = natural_positions();

// The tables of a scan. They are kept from image to image: files of one writer often share them.
class ScanTables {
 public:
  // Throws Error where a table is missing or bad.
  void build(const Header& header);

  int blocks_per_mcu() const { return blocks_per_mcu_; }
  int chunk_mcus() const { return kChunkBlocks / blocks_per_mcu_; }
  // For each block of a chunk the table of its DC and that of its AC; then a spare one.
  const TableStep* steps() const { return steps_.data(); }

 private:
  std::array<HuffmanTable, 4> dc_, ac_;
  std::array<HuffmanSpec, 4> dc_built_, ac_built_;  // what those were built from
  int blocks_per_mcu_ = 0;
  std::array<TableStep, 2 * kChunkBlocks + 1> steps_;
};

// How far a symbol moves the coefficient index (0: it ends the block), or -1 where baseline JPEG
// does not allow it.
int symbol_advance(int symbol, bool ac);

// A chunk may be read this far behind an interval before that is noticed: 64 symbols a block of at
// most 27 bits, and a refill. Zeros follow the interval, so that the next symbol is always the same;
// what lies behind them decides nothing, as the interval is refused.
constexpr size_t kReadBehind = kChunkBlocks * 64 * 27 / 8 + 16, kZerosBehind = 24;

// Copies the interval without the zeros stuffed behind each 0xFF, and pads it. Returns
// the length without the padding.
size_t unstuff(Bytes interval, std::vector<uint8_t>& out);

}  // namespace fastselfie::jpeg
