// Huffman lookup tables and the undoing of byte stuffing: see huffman.hpp.
#include "huffman.hpp"

#include <algorithm>
#include <cstring>

#include "kernels.hpp"

namespace fastselfie::jpeg {
namespace {

// T.81 tables K.3 to K.6: the DC and the AC codes of luminance, then those of chrominance.
const std::array<HuffmanSpec, 4> kStandardSpecs = {{
    {true,
     {{0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0}},
     {{
         0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x0B}}},
    {true,
     {{0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125}},
     {{
         0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61,
         0x07, 0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xA1, 0x08, 0x23, 0x42, 0xB1, 0xC1, 0x15, 0x52,
         0xD1, 0xF0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0A, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x25,
         0x26, 0x27, 0x28, 0x29, 0x2A, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45,
         0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5A, 0x63, 0x64,
         0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x83,
         0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
         0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6,
         0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3,
         0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8,
         0xE9, 0xEA, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA}}},
    {true,
     {{0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0}},
     {{
         0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x0B}}},
    {true,
     {{0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119}},
     {{
         0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61,
         0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xA1, 0xB1, 0xC1, 0x09, 0x23, 0x33,
         0x52, 0xF0, 0x15, 0x62, 0x72, 0xD1, 0x0A, 0x16, 0x24, 0x34, 0xE1, 0x25, 0xF1, 0x17, 0x18,
         0x19, 0x1A, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44,
         0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5A, 0x63,
         0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A,
         0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97,
         0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4,
         0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA,
         0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7,
         0xE8, 0xE9, 0xEA, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA}}},
}};

bool same_spec(const HuffmanSpec& a, const HuffmanSpec& b) {
  return a.defined && b.defined && a.counts == b.counts && a.symbols == b.symbols;
}

void rebuild(const HuffmanSpec& spec, bool ac, HuffmanTable& table, HuffmanSpec& built) {
  if (same_spec(spec, built)) return;
  built.defined = false;  // a refused table is half built
  table.build(spec, ac);
  built = spec;
}

using F = HuffmanFields;

// The parts of an entry that one symbol decides by itself.
HuffmanEntry symbol_entry(int length, int symbol, bool ac) {
  const int advance = symbol_advance(symbol, ac), size = symbol & 15;
  if (advance < 0) return HuffmanTable::kSlow;  // which reports it
  const HuffmanEntry ends = !ac          ? HuffmanTable::kNextTable
                            : !advance ? HuffmanTable::kNextTable | HuffmanTable::kEndOfBlock
                                       : 0;
  return ends | huffman_field(length + size, F::kBits) | huffman_field(length, F::kBitsBefore) |
         huffman_field((64 - size) & 63, F::kLastSize) | huffman_field(advance, F::kAdvance) |
         huffman_field(std::max(advance - 1, 0), F::kLastPlace);
}

constexpr int entry_field(HuffmanEntry entry, int shift) { return entry >> shift & 0x3F; }

// An entry of one coefficient writes a zero as its first: over a last value without bits, which is
// garbage, or else where nothing is yet.
HuffmanEntry alone(HuffmanEntry single) {
  const bool has_bits = entry_field(single, F::kLastSize) != 0;
  const int shift = has_bits ? F::kAdvance : F::kLastPlace;
  return single | huffman_field(single >> shift & 0xFF, F::kFirstPlace);
}

// The entries of a code whose value leaves bits of the lookup to what follows it.
struct Pairs {
  const std::array<HuffmanEntry, 1 << HuffmanTable::kAcBits>& singles;
  const std::array<uint8_t, 1 << HuffmanTable::kAcBits>& lengths;

  void fill(int symbol, int length, HuffmanEntry* out) const {
    const int size = symbol & 15, bits = HuffmanTable::kAcBits - length - size;
    const HuffmanEntry single = symbol_entry(length, symbol, true);
    const int advance = entry_field(single, F::kAdvance);
    // Fields of two entries add up: none overflows into the next.
    const HuffmanEntry both =
        huffman_field(length + size, F::kBits) | huffman_field(length + size, F::kBitsBefore) |
        huffman_field(advance, F::kAdvance) | huffman_field(advance - 1, F::kFirstPlace);
    for (int value = 0; value < 1 << size; ++value) {
      const int negative = size > 0 && value < 1 << (size - 1);
      const HuffmanEntry first =
          huffman_field(value - negative * ((1 << size) - 1), F::kFirstValue);
      for (int next = 0; next < 1 << bits; ++next) {
        const int at = next << (HuffmanTable::kAcBits - bits);
        if (lengths[at] > bits) {
          *out++ = alone(single);
          continue;
        }
        // The first value is written over a last one without bits.
        const bool has_bits = entry_field(singles[at], F::kLastSize) != 0;
        const HuffmanEntry last =
            has_bits ? singles[at] + huffman_field(advance, F::kLastPlace)
                     : (singles[at] & ~huffman_field(0xFF, F::kLastPlace)) +
                           huffman_field(advance - 1, F::kLastPlace);
        *out++ = last + both + first;
      }
    }
  }
};

}  // namespace

int symbol_advance(int symbol, bool ac) {
  const int run = symbol >> 4, size = symbol & 15;
  if (!ac) return symbol <= 11 ? 1 : -1;
  if (size > 10) return -1;
  if (size > 0) return run + 1;
  if (run == 0) return 0;
  return run == 15 ? 16 : -1;
}

void add_standard_huffman(bool ac, int table, HuffmanSpec& spec) {
  if (!spec.defined && table < 2) spec = kStandardSpecs[2 * table + ac];
}

void HuffmanTable::build(const HuffmanSpec& spec, bool ac) {
  if (!spec.defined) throw Error("corrupt header: the scan uses a Huffman table that is missing");
  is_ac = ac;
  symbols = spec.symbols;
  const int bits = ac ? kAcBits : kDcBits;
  std::array<HuffmanEntry, 1 << kAcBits> singles;
  std::array<uint8_t, 1 << kAcBits> lengths;  // of the code; 255 where there is no usable one
  int code = 0, index = 0, filled = 0;
  for (int length = 1; length <= 16; ++length) {
    symbol_offset[length] = index - code;
    const int end = code + spec.counts[length - 1];
    if (end >= 1 << length) throw Error("bad Huffman table: more codes than its lengths allow");
    for (; code < end; ++code, ++index) {
      if (!ac && symbols[index] > 15) throw Error("bad Huffman table: a DC symbol above 15");
      if (length > bits) continue;
      const HuffmanEntry entry = symbol_entry(length, symbols[index], ac);
      const int count = 1 << (bits - length);
      std::fill_n(&singles[filled], count, entry);
      std::fill_n(&lengths[filled], count, entry & kSlow ? 255 : length);
      filled += count;
    }
    limit[length] = static_cast<uint32_t>(code) << (16 - length);
    code <<= 1;
  }
  std::fill(&singles[filled], singles.end(), kSlow);
  std::fill(&lengths[filled], lengths.end(), uint8_t{255});

  const Pairs pairs{singles, lengths};
  for (int at = 0; at < 1 << bits;) {
    const HuffmanEntry entry = singles[at];
    const int length = lengths[at], count = length > bits ? 1 : 1 << (bits - length);
    if (!ac || length > bits || entry & kEndOfBlock || entry_field(entry, F::kBits) >= bits) {
      std::fill_n(&lookup[at], count, entry & kSlow ? entry : alone(entry));
    } else {
      const int symbol = symbols[(at >> (bits - length)) + symbol_offset[length]];
      pairs.fill(symbol, length, &lookup[at]);
    }
    at += count;
  }
}

void ScanTables::build(const Header& header) {
  int steps = 0;
  for (int i = 0; i < header.num_components; ++i) {
    const Component& c = header.components[i];
    const HuffmanTable &dc = dc_[c.dc_table], &ac = ac_[c.ac_table];
    rebuild(header.dc_specs[c.dc_table], false, dc_[c.dc_table], dc_built_[c.dc_table]);
    rebuild(header.ac_specs[c.ac_table], true, ac_[c.ac_table], ac_built_[c.ac_table]);
    if (!header.quant_defined[c.quant_table]) {
      throw Error("corrupt header: a quantisation table is missing");
    }
    for (int block = 0; block < c.h * c.v; ++block) {
      steps_[steps++] = table_step(dc, HuffmanTable::kDcBits);
      steps_[steps++] = table_step(ac, HuffmanTable::kAcBits);
    }
  }
  blocks_per_mcu_ = steps / 2;
  const int end = steps * chunk_mcus();
  for (int at = steps; at <= end; ++at) steps_[at] = steps_[at - steps];
}

size_t unstuff(Bytes interval, std::vector<uint8_t>& out) {
  if (out.size() < interval.size + kReadBehind) out.resize(interval.size + kReadBehind);
  const size_t size = kernels().unstuff(interval, out.data());
  std::memset(&out[size], 0, kZerosBehind);
  return size;
}

}  // namespace fastselfie::jpeg
