// The symbols of a baseline scan (T.81 F.2.2), one lookup each: what every reader of one shares.

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

  // Whether the last byte that was begun is filled up with equal bits, as an encoder does. A reader
  // that lost its way ends anywhere.
  bool ends_in_filler() const {
    const ptrdiff_t left = bits_left();
    const int filler = (1 << (left & 7)) - 1;
    const int bits = begin_[static_cast<ptrdiff_t>(size_) - 1 - left / 8] & filler;
    return bits == 0 || bits == filler;
  }

 private:
  uint64_t bits_ = 0;
  int count_ = 0;
  const uint8_t* next_;
  const uint8_t* begin_;
  size_t size_;
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
