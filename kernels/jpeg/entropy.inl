// The entropy decoder of baseline JPEG (T.81 F.2.2), fused with the inverse DCT block by block.

// The next bits of an interval, left-aligned in 64 bits. No bounds check on a read: intervals are
// padded, and the caller asks overran() after each MCU.
class BitReader {
 public:
  BitReader(const uint8_t* begin, size_t size) : next_(begin), begin_(begin), size_(size) {}

  // At least 56 bits are there afterwards. Eight bytes are loaded whatever the need; those that do
  // not fit are simply loaded again next time, which is cheaper than a branch.
  void refill() {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
    uint64_t word;
    std::memcpy(&word, next_, 8);
    bits_ |= __builtin_bswap64(word) >> count_;
    next_ += (63 - count_) >> 3;
    count_ |= 56;
  }
  uint64_t bits() const { return bits_; }
  uint32_t peek(int n) const { return static_cast<uint32_t>(bits_ >> (64 - n)); }
  void consume(int n) {
    bits_ <<= n;
    count_ -= n;
  }
  ptrdiff_t bits_left() const {
    return (static_cast<ptrdiff_t>(size_) - (next_ - begin_)) * 8 + count_;
  }

 private:
  uint64_t bits_ = 0;
  int count_ = 0;
  const uint8_t* next_;
  const uint8_t* begin_;
  size_t size_;
};

// Coefficients in zigzag order -> natural order. An index past 63 (a corrupt run, or the step of
// end-of-block) leads to the spare place behind the block.
struct Zigzag {
  uint8_t natural[64 + HuffmanTable::kEndOfBlock + 16];
  constexpr Zigzag() : natural() {
    int x = 0, y = 0, step = -1;
    for (int k = 0; k < 64; ++k) {
      natural[k] = static_cast<uint8_t>(8 * y + x);
      const bool turn = step < 0 ? (x == 7 || y == 0) : (y == 7 || x == 0);
      if (!turn) {
        x -= step;
        y += step;
      } else {
        if (step < 0)
          (x == 7 ? y : x) += 1;
        else
          (y == 7 ? x : y) += 1;
        step = -step;
      }
    }
    for (size_t k = 64; k < sizeof natural; ++k) natural[k] = 64;
  }
};
constexpr Zigzag kZigzag;

struct alignas(64) Block {
  int16_t values[64 + 8] = {};  // with a spare place for what lies past the end
};

// What the lookup could not give in one step. Returns a complete entry, or 0: no such code.
[[gnu::noinline]] uint32_t complete_entry(const HuffmanTable& table, uint32_t entry,
                                          uint64_t bits) {
  int length = entry & 0x7F, advance = entry >> 8 & 0xFF, size = static_cast<int>(entry >> 16);
  if (length == 0) {
    const auto next16 = static_cast<uint32_t>(bits >> 48);
    length = 1;
    while (length <= 16 && next16 >= table.limit[length]) ++length;
    if (length > 16) return 0;
    const auto code = static_cast<int>(next16 >> (16 - length));
    const int symbol = table.symbols[(code + table.symbol_offset[length]) & 0xFF];
    advance = symbol_advance(symbol, table.is_ac);
    if (advance < 0) return 0;
    size = symbol & 15;
    if (size == 0) return huffman_entry(length, advance, 0);
  }
  const uint64_t rest = bits << length;
  const int magnitude = static_cast<int>(rest >> (64 - size));
  const bool negative = rest >> 63 == 0;
  return huffman_entry(length + size, advance, magnitude - (negative ? (1 << size) - 1 : 0));
}

inline uint32_t next_entry(const HuffmanTable& table, BitReader& reader) {
  uint32_t entry = table.lookup[reader.peek(HuffmanTable::kLookupBits)];
  if (__builtin_expect(entry & HuffmanTable::kIncomplete, 0)) {
    entry = complete_entry(table, entry, reader.bits());
  }
  reader.consume(entry & 0x3F);
  return entry;
}

inline int entry_value(uint32_t entry) { return static_cast<int32_t>(entry) >> 16; }

// Returns the number of coefficients up to the last that was coded (1: only DC), or 0 if corrupt.
inline int decode_block(const ComponentScan& component, BitReader& reader, int& dc, Block& block) {
  reader.refill();
  uint32_t entry = next_entry(*component.dc, reader);
  if (entry == 0) return 0;
  dc = static_cast<int16_t>(dc + entry_value(entry));  // wraps: hostile sums stay defined
  block.values[0] = static_cast<int16_t>(dc);
  int k = 1;
  // Two symbols of at most 26 bits fit one refill (56 bits), a DC symbol and one of AC as well.
  const auto step = [&] {
    entry = next_entry(*component.ac, reader);
    k += entry >> 8 & 0xFF;
    block.values[kZigzag.natural[k - 1]] = static_cast<int16_t>(entry_value(entry));
  };
  for (;;) {
    step();
    if (entry == 0 || k >= 64) break;
    reader.refill();
    step();
    if (entry == 0 || k >= 64) break;
  }
  if (k >= HuffmanTable::kEndOfBlock) return k - HuffmanTable::kEndOfBlock;
  return k == 64 && entry != 0 ? 64 : 0;
}

const char* decode_interval(const Scan& scan, const uint8_t* bytes, size_t size, Range mcus,
                            bool whole) {
  constexpr const char* kCorrupt = "corrupt scan: a bad Huffman code";
  BitReader reader(bytes, size);
  int dc[kMaxComponents] = {};
  Block block;
  int mcu_x = mcus.begin % scan.mcus_per_row, mcu_y = mcus.begin / scan.mcus_per_row;
  for (int mcu = mcus.begin; mcu < mcus.end; ++mcu) {
    const bool wanted = scan.mcus_x.contains(mcu_x) && scan.mcus_y.contains(mcu_y);
    for (int i = 0; i < scan.num_components; ++i) {
      const ComponentScan& c = scan.components[i];
      for (int y = mcu_y * c.v; y < mcu_y * c.v + c.v; ++y) {
        for (int x = mcu_x * c.h; x < mcu_x * c.h + c.h; ++x) {
          const int count = decode_block(c, reader, dc[i], block);
          if (count == 0) return kCorrupt;
          if (wanted && c.plan.blocks_x.contains(x) && c.plan.blocks_y.contains(y)) {
            const int side = c.plan.block_size;
            const ptrdiff_t stride = c.plane.stride;
            uint8_t* const out =
                c.plane.data + (x * side - c.plane.first_x) * stride + (y * side - c.plane.first_y);
            reconstruct_block(block.values, count == 1, c.quant.data(), side, out, stride);
          }
          if (count > 1) block = Block();
        }
      }
    }
    if (reader.bits_left() < 0) return "corrupt scan: an interval ends too early";
    if (++mcu_x == scan.mcus_per_row) {
      mcu_x = 0;
      ++mcu_y;
    }
  }
  if (whole && reader.bits_left() >= 8) return "corrupt scan: bytes left over in an interval";
  return nullptr;
}
