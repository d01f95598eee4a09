// Huffman lookup tables and the undoing of byte stuffing: see huffman.hpp.
#include "huffman.hpp"

#include <algorithm>
#include <cstring>

namespace fastselfie::jpeg {
namespace {

constexpr int kLookupBits = HuffmanTable::kLookupBits;

// T.81 F.2.2.1 EXTEND: value bits with a leading 0 stand for negative numbers.
int extend(int bits, int size) { return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits; }

void fill_lookup(HuffmanTable& table, int code, int length, int symbol) {
  const int advance = symbol_advance(symbol, table.is_ac), size = symbol & 15;
  if (advance < 0) return;  // stays incomplete: the slow path reports it
  const int free_bits = kLookupBits - length;
  uint32_t* entry = &table.lookup[static_cast<size_t>(code) << free_bits];
  if (size > free_bits) {
    std::fill_n(entry, 1 << free_bits,
                huffman_entry(length, advance, size) | HuffmanTable::kIncomplete);
    return;
  }
  const int repeats = 1 << (free_bits - size);
  for (int bits = 0; bits < 1 << size; ++bits, entry += repeats) {
    const int value = size ? extend(bits, size) : 0;
    std::fill_n(entry, repeats, huffman_entry(length + size, advance, value));
  }
}

}  // namespace

int symbol_advance(int symbol, bool ac) {
  const int run = symbol >> 4, size = symbol & 15;
  if (!ac) return symbol <= 11 ? 1 : -1;
  if (size > 10) return -1;
  if (size > 0) return run + 1;
  if (run == 0) return HuffmanTable::kEndOfBlock;
  return run == 15 ? 16 : -1;
}

void HuffmanTable::build(const HuffmanSpec& spec, bool ac) {
  is_ac = ac;
  symbols = spec.symbols;
  lookup.fill(kIncomplete);
  int code = 0, index = 0;
  for (int length = 1; length <= 16; ++length) {
    symbol_offset[length] = index - code;
    for (int i = 0; i < spec.counts[length - 1]; ++i, ++code, ++index) {
      if (length <= kLookupBits) fill_lookup(*this, code, length, symbols[index]);
    }
    limit[length] = static_cast<uint32_t>(code) << (16 - length);
    code <<= 1;
  }
}

size_t unstuff(Bytes interval, std::vector<uint8_t>& out) {
  if (out.size() < interval.size + kIntervalPadding) out.resize(interval.size + kIntervalPadding);
  const uint8_t* in = interval.data;
  const uint8_t* const end = in + interval.size;
  uint8_t* to = out.data();
  while (in < end) {
    const auto* ff = static_cast<const uint8_t*>(std::memchr(in, 0xFF, end - in));
    const size_t run = (ff ? ff + 1 : end) - in;
    std::memcpy(to, in, run);
    to += run;
    in += run + (ff != nullptr);  // index_intervals() has seen that a zero follows
  }
  std::memset(to, 0, kIntervalPadding);
  return to - out.data();
}

}  // namespace fastselfie::jpeg
