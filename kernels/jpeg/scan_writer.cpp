// The entropy encoder of baseline JPEG (T.81 F.1.2), and the segments before it: see
// scan_writer.hpp. Byte for byte what libjpeg writes of the same coefficients.
#include "scan_writer.hpp"

#include <algorithm>
#include <cstring>

#include "optimal_huffman.hpp"

namespace fastselfie::jpeg {
namespace {

using Buffer = std::vector<uint8_t>;

// A symbol's code, with room for its value bits below, and the length of both.
struct Code {
  uint32_t bits = 0;
  int length = 0;
};
using Codes = std::array<Code, kTokenTables * 256>;

void assign_codes(const HuffmanSpec& spec, Code* codes) {
  uint32_t code = 0;
  int index = 0;
  for (int length = 1; length <= 16; ++length, code <<= 1) {
    for (int i = 0; i < spec.counts[length - 1]; ++i, ++index, ++code) {
      const int symbol = spec.symbols[index], size = symbol & 15;
      codes[symbol] = {code << size, length + size};
    }
  }
}

// Bits, most significant first, with a zero stuffed behind each 0xFF. The caller sees to the room.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* out) : out_(out) {}

  uint8_t* out() const { return out_; }

  void put(Code code) {
    free_ -= code.length;
    if (free_ >= 0) {
      bits_ = bits_ << code.length | code.bits;
      return;
    }
    flush(bits_ << (free_ + code.length) | code.bits >> -free_);
    bits_ = code.bits;  // those that are written already will be shifted out
    free_ += 64;
  }

  // Up to a whole byte with ones, then the marker.
  void end_interval(uint8_t marker) {
    put({0x7F, 7});
    for (int count = 64 - free_; count >= 8; count -= 8) {
      put_byte(static_cast<uint8_t>(bits_ >> (count - 8)));
    }
    *out_++ = 0xFF;
    *out_++ = marker;
    bits_ = 0;
    free_ = 64;
  }

 private:
  void put_byte(uint8_t byte) {
    *out_++ = byte;
    if (byte == 0xFF) *out_++ = 0;
  }
  void flush(uint64_t word) {
    constexpr uint64_t kOnes = 0x0101010101010101;
    if (((~word - kOnes) & word & kOnes << 7) == 0) {  // no byte of ~word is zero
      static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
      word = __builtin_bswap64(word);
      std::memcpy(out_, &word, 8);
      out_ += 8;
      return;
    }
    for (int shift = 56; shift >= 0; shift -= 8) put_byte(static_cast<uint8_t>(word >> shift));
  }

  uint64_t bits_ = 0;
  int free_ = 64;  // of bits_, from its top
  uint8_t* out_;
};

void put_u16(Buffer& out, int value) {
  out.push_back(static_cast<uint8_t>(value >> 8));
  out.push_back(static_cast<uint8_t>(value));
}

void put_segment(Buffer& out, uint8_t marker, const Buffer& body) {
  out.insert(out.end(), {0xFF, marker});
  put_u16(out, static_cast<int>(body.size()) + 2);
  out.insert(out.end(), body.begin(), body.end());
}

void put_quant_tables(Buffer& out, const Header& header) {
  std::array<bool, 4> done{};
  for (int i = 0; i < header.num_components; ++i) {
    const uint8_t table = header.components[i].quant_table;
    if (done[table]) continue;
    done[table] = true;
    Buffer body{table};
    for (const int step : header.quant[table]) body.push_back(static_cast<uint8_t>(step));
    put_segment(out, 0xDB, body);
  }
}

void put_frame(Buffer& out, const Header& header) {
  Buffer body{8};
  put_u16(body, header.size.height);
  put_u16(body, header.size.width);
  body.push_back(static_cast<uint8_t>(header.num_components));
  for (int i = 0; i < header.num_components; ++i) {
    const Component& c = header.components[i];
    body.insert(body.end(), {c.id, static_cast<uint8_t>(c.h << 4 | c.v), c.quant_table});
  }
  put_segment(out, 0xC0, body);
}

void put_huffman_table(Buffer& out, int table, const HuffmanSpec& spec) {
  const int is_ac = table & 1, number = table >> 1;
  Buffer body{static_cast<uint8_t>(is_ac << 4 | number)};
  int total = 0;
  for (const uint8_t count : spec.counts) {
    body.push_back(count);
    total += count;
  }
  body.insert(body.end(), spec.symbols.begin(), spec.symbols.begin() + total);
  put_segment(out, 0xC4, body);
}

void put_scan_header(Buffer& out, const Header& header) {
  Buffer body{static_cast<uint8_t>(header.num_components)};
  for (int i = 0; i < header.num_components; ++i) {
    body.push_back(header.components[i].id);
    body.push_back(i == 0 ? 0x00 : 0x11);  // the numbers of its DC and its AC table
  }
  body.insert(body.end(), {0, 63, 0});  // the whole spectrum at once
  put_segment(out, 0xDA, body);
}

void put_scan(Buffer& out, const Tokens& tokens, const Codes& codes) {
  // A byte for any eight bits, twice that if all are stuffed; an interval's last byte and marker.
  const std::vector<size_t> ends = tokens.ends();
  uint64_t bits = 0;
  for (int table = 0; table < kTokenTables; ++table) {
    for (int symbol = 0; symbol < 256; ++symbol) {
      bits += uint64_t{tokens.counts(table)[symbol]} * codes[table * 256 + symbol].length;
    }
  }
  const size_t begin = out.size();
  out.resize(begin + bits / 8 * 2 + ends.size() * 4 + 16);
  BitWriter writer(&out[begin]);
  const Token* token = tokens.data();
  for (size_t i = 0; i < ends.size(); ++i) {
    for (const Token* const end = tokens.data() + ends[i]; token < end; ++token) {
      Code code = codes[*token >> 16];
      code.bits |= *token & 0xFFFF;
      writer.put(code);
    }
    writer.end_interval(i + 1 < ends.size() ? 0xD0 + i % 8 : 0xD9);
  }
  out.resize(writer.out() - out.data());
}

}  // namespace

std::vector<uint8_t> write_jpeg(const Header& header, const Tokens& tokens) {
  Buffer out{0xFF, 0xD8};
  Buffer app0{'J', 'F', 'I', 'F', 0};
  app0.insert(app0.end(), header.jfif.begin(), header.jfif.end());
  app0.insert(app0.end(), {0, 0});  // no thumbnail
  put_segment(out, 0xE0, app0);
  put_quant_tables(out, header);
  put_frame(out, header);
  Codes codes;
  for (int table = 0; table < (header.num_components == 1 ? 2 : kTokenTables); ++table) {
    const HuffmanSpec spec = optimal_huffman(tokens.counts(table));
    put_huffman_table(out, table, spec);
    assign_codes(spec, &codes[table * 256]);
  }
  Buffer restarts;
  put_u16(restarts, tokens.interval());
  put_segment(out, 0xDD, restarts);
  put_scan_header(out, header);
  put_scan(out, tokens, codes);
  return out;
}

}  // namespace fastselfie::jpeg
