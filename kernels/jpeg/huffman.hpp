// Huffman tables in the form the fast decoder looks codes up in, and the undoing of byte stuffing.
#pragma once

#include "header.hpp"

namespace fastselfie::jpeg {

// One lookup of the next kLookupBits bits gives, for most symbols, the code *and* the coefficient's
// value bits that follow it: the decoder's whole step is one load. An entry is
//   bits 0-6    length: bits to consume
//   bit 7       kIncomplete: the value bits lie (partly) outside of the lookup, `value` is their
//               number; with length 0 the code itself is longer than the lookup
//   bits 8-15   advance: how far the coefficient index moves (run + 1)
//   bits 16-31  value, signed
struct HuffmanTable {
  static constexpr int kLookupBits = 11;
  static constexpr uint32_t kIncomplete = 0x80;
  // The advance of end-of-block: past any index that codes can reach by mistake (63 + 16), so that
  // the final index tells a proper end (>= 128) from an overrun (65..79) without a branch of its
  // own.
  static constexpr int kEndOfBlock = 128;

  std::array<uint32_t, 1 << kLookupBits> lookup;
  // For longer codes: codes of length n, left-aligned to 16 bits, are below limit[n].
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

constexpr uint32_t huffman_entry(int length, int advance, int value) {
  return static_cast<uint32_t>(length) | static_cast<uint32_t>(advance) << 8 |
         static_cast<uint32_t>(value) << 16;
}

// The advance of a symbol, or -1 if baseline JPEG does not allow it.
int symbol_advance(int symbol, bool ac);

// The decoder may read this far behind an interval before it notices: ten blocks (the largest MCU)
// of 64 symbols of at most 31 bits, and a refill.
constexpr size_t kIntervalPadding = 10 * 64 * 4 + 16;

// Copies the interval without the zeros stuffed behind each 0xFF, and pads it with zeros. Returns
// the length without the padding.
size_t unstuff(Bytes interval, std::vector<uint8_t>& out);

}  // namespace fastselfie::jpeg
