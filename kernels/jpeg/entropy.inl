// The entropy decoder of baseline JPEG (T.81 F.2.2).
//
// Each lookup waits for the one before, and where a block ends cannot be predicted. So the loop over
// a chunk of blocks has no branch that depends on usual data: a lookup gives up to two coefficients
// (see huffman.hpp), and the end of a block is a conditional move to the next table.

// At least 56 bits are there afterwards. Eight bytes are loaded whatever the need; those that do not
// fit are simply loaded again next time, which is cheaper than a branch.
inline void refill(BitPosition& at) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  uint64_t word;
  std::memcpy(&word, at.next, 8);
  at.bits |= __builtin_bswap64(word) >> (at.count & 63);
  at.next += ~at.count >> 3 & 7;
  at.count |= 56;
}

// The six lowest bits of `n` count. So do those of at.count, until a loop is done.
inline void consume(BitPosition& at, uint64_t n) {
  at.bits <<= n & 63;
  at.count -= n;
}

// A chunk in the making. Positions are block * 64 + zigzag index.
struct Cursor {
  BitPosition at;
  const TableStep* next_step;
  TableStep step;
  size_t position, block_end;

  Cursor(const BitPosition& begin, const TableStep* steps)
      : at(begin), next_step(steps + 1), step(*steps), position(0), block_end(64) {}
};

// Where the coefficient at a position is stored.
enum class Order { kNatural, kZigzag };

template <Order kOrder>
inline size_t place(size_t position) {
  return kOrder == Order::kNatural ? kNaturalPositions[position] : position;
}

// The value of `size` bits at the top of `bits`, as T.81 F.2.2.1 extends it, for a `size` above 0.
// The six lowest bits of `rest` are 64 - size.
inline int extended_value(uint64_t bits, uint64_t rest) {
  const uint64_t negative = ~static_cast<uint64_t>(static_cast<int64_t>(bits) >> 63);
  return static_cast<int>((bits >> (rest & 63)) - (negative >> (rest & 63)));
}

// Decodes one symbol: what the lookup does not give, or what may fill the block. False: a bad code.
template <Order kOrder>
[[gnu::noinline]] bool decode_symbol(Cursor& cursor, int16_t* coefficients) {
  const HuffmanTable& table = table_of(cursor.step);
  const uint64_t bits = cursor.at.bits;
  const auto next16 = static_cast<uint32_t>(bits >> 48);
  int length = 1;
  while (length <= 16 && next16 >= table.limit[length]) ++length;
  if (length > 16) return false;
  const auto code = static_cast<int>(next16 >> (16 - length));
  const int symbol = table.symbols[(code + table.symbol_offset[length]) & 0xFF];
  const int advance = symbol_advance(symbol, table.is_ac), size = symbol & 15;
  const size_t position = cursor.position + static_cast<size_t>(advance);
  if (advance < 0 || position > cursor.block_end) return false;
  if (size > 0) {
    coefficients[place<kOrder>(position - 1)] =
        static_cast<int16_t>(extended_value(bits << length, 64 - size));
  }
  consume(cursor.at, static_cast<uint64_t>(length + size));
  const bool ends = advance == 0 || position == cursor.block_end;
  cursor.position = ends ? cursor.block_end : position;
  if (ends) cursor.block_end += 64;
  if (!table.is_ac || ends) cursor.step = *cursor.next_step++;
  return true;
}

// `chosen` where `condition`, else `other`, by a conditional move: no branch to mispredict.
template <typename Value>
inline Value select(bool condition, Value chosen, Value other) {
  return __builtin_expect_with_probability(condition, 1, 0.5) ? chosen : other;
}

using F = HuffmanFields;

// Fields are read from the two lowest bytes of a rotation: each of these is one instruction.
inline uint64_t rotated(uint64_t x, int bits) { return x >> bits | x << (64 - bits); }
inline size_t second_byte(uint64_t x) { return x >> 8 & 0xFF; }
static_assert(F::kLastPlace == 8 && F::kAdvance == F::kBitsBefore + 8 &&
              F::kFirstPlace == F::kLastSize + 8);

// One lookup. It takes at most 27 bits, so that two fit one refill.
template <Order kOrder>
inline bool decode_entry(Cursor& cursor, int16_t* coefficients) {
  const HuffmanEntry entry = table_of(cursor.step).lookup[cursor.at.bits >> (cursor.step & 63)];
  const uint64_t before = rotated(entry, F::kBitsBefore), rest = rotated(entry, F::kLastSize);
  const size_t position = cursor.position + second_byte(before);
  if (__builtin_expect(position >= cursor.block_end, 0)) {
    Cursor copy = cursor;  // of its own, so that the loop's stays in registers
    const bool good = decode_symbol<kOrder>(copy, coefficients);
    cursor = copy;
    return good;
  }
  // The last value before the first, which may have to go over it (see huffman.hpp).
  coefficients[place<kOrder>(cursor.position + second_byte(entry))] =
      static_cast<int16_t>(extended_value(cursor.at.bits << (before & 63), rest));
  coefficients[place<kOrder>(cursor.position + second_byte(rest))] =
      static_cast<int16_t>(rotated(entry, F::kFirstValue));
  consume(cursor.at, entry);
  const uint64_t ends = entry & HuffmanTable::kEndOfBlock;
  cursor.position = select(ends, cursor.block_end, position);
  cursor.block_end += ends;
  TableStep next_step = *cursor.next_step;
  asm("" : "+r"(next_step));  // loaded in any case, which leaves a register to choose
  static_assert(HuffmanTable::kNextTable == 0x80);  // the sign of the lowest byte
  cursor.step = select(static_cast<int8_t>(entry) < 0, next_step, cursor.step);
  cursor.next_step += entry >> 7 & 1;
  return true;
}

// Decodes up to the position `end`. False: a bad code. Not inlined: the loop needs every register.
template <Order kOrder>
[[gnu::noinline]] bool decode_until(Cursor& shared, uint32_t end, int16_t* coefficients) {
  Cursor cursor = shared;
  bool good = true;
  while (good && cursor.position < end) {
    refill(cursor.at);
    good = decode_entry<kOrder>(cursor, coefficients);
    if (!good || cursor.position >= end) break;
    good = decode_entry<kOrder>(cursor, coefficients);
  }
  cursor.at.count &= 63;
  shared = cursor;
  return good;
}

bool decode_coefficients(const ScanTables& tables, int blocks, BitPosition& position,
                         int16_t* coefficients) {
  Cursor cursor(position, tables.steps());
  const bool good =
      decode_until<Order::kZigzag>(cursor, static_cast<uint32_t>(blocks) * 64, coefficients);
  position = cursor.at;
  return good;
}

// Adds up the differences of DC. A pass of its own: a vector loaded right behind the store of one of
// its lanes waits for it.
inline void sum_dc(const Scan& scan, int mcus, int (&dc)[kMaxComponents], int16_t* block) {
  for (int mcu = 0; mcu < mcus; ++mcu) {
    for (int i = 0; i < scan.num_components; ++i) {
      const int16_t* const end = block + scan.components[i].h * scan.components[i].v * 64;
      for (; block < end; block += 64) {
        dc[i] = static_cast<int16_t>(dc[i] + block[0]);  // wraps: hostile sums stay defined
        block[0] = static_cast<int16_t>(dc[i]);
      }
    }
  }
}

// Reconstructs what is wanted of the MCUs of a chunk.
[[gnu::noinline]] void reconstruct(const Scan& scan, Range mcus, const int16_t* block) {
  BlockQueue queues[kMaxComponents];
  int mcu_x = mcus.begin % scan.mcus_per_row, mcu_y = mcus.begin / scan.mcus_per_row;
  for (int mcu = mcus.begin; mcu < mcus.end; ++mcu) {
    const bool wanted = scan.mcus_x.contains(mcu_x) && scan.mcus_y.contains(mcu_y);
    if (!wanted) block += 64 * scan.tables->blocks_per_mcu();
    for (int i = 0; wanted && i < scan.num_components; ++i) {
      const ComponentScan& c = scan.components[i];
      BlockQueue& queue = queues[i];
      for (int y = mcu_y * c.v; y < mcu_y * c.v + c.v; ++y) {
        for (int x = mcu_x * c.h; x < mcu_x * c.h + c.h; ++x, block += 64) {
          if (!c.plan.blocks_x.contains(x) || !c.plan.blocks_y.contains(y)) continue;
          queue.coefficients[queue.size] = block;
          queue.out[queue.size] = c.plane.at(x * c.plan.block_size, y * c.plan.block_size);
          if (++queue.size == kBlocks) reconstruct_blocks(queue, c);
        }
      }
    }
    if (++mcu_x == scan.mcus_per_row) {
      mcu_x = 0;
      ++mcu_y;
    }
  }
  for (int i = 0; i < scan.num_components; ++i) reconstruct_blocks(queues[i], scan.components[i]);
}

// Decodes one interval after another, chunk by chunk.
class Lane {
 public:
  Lane(const Scan& scan, IntervalSource& source, int index)
      : scan_(scan), source_(source), index_(index) {
    begin_interval();
  }

  bool active() const { return active_; }

  // Decodes the rest of the chunk. False: the interval is damaged, or holds more than its MCUs.
  bool decode_rest() {
    return decode_until<Order::kNatural>(cursor_, end_, coefficients_) && finish_chunk();
  }

  // Decodes in step with another lane until a chunk of either is done: the processor overlaps the
  // waits of two independent chains of lookups.
  static bool decode_both(Lane& first, Lane& second) {
    return run(first.cursor_, first.end_, first.coefficients_, second.cursor_, second.end_,
               second.coefficients_) &&
           (first.cursor_.position < first.end_ || first.finish_chunk()) &&
           (second.cursor_.position < second.end_ || second.finish_chunk());
  }

 private:
  [[gnu::noinline]] static bool run(Cursor& first, uint32_t first_end, int16_t* first_values,
                                    Cursor& second, uint32_t second_end, int16_t* second_values) {
    Cursor a = first, b = second;
    bool good = true;
    while (good && a.position < first_end && b.position < second_end) {
      refill(a.at);
      refill(b.at);
      good = decode_entry<Order::kNatural>(a, first_values) &&
             decode_entry<Order::kNatural>(b, second_values);
      if (!good || a.position >= first_end || b.position >= second_end) break;
      good = decode_entry<Order::kNatural>(a, first_values) &&
             decode_entry<Order::kNatural>(b, second_values);
    }
    a.at.count &= 63;
    b.at.count &= 63;
    first = a;
    second = b;
    return good;
  }

  void begin_interval() {
    active_ = source_.next(index_, interval_);
    if (!active_) return;
    cursor_.at = {0, 0, interval_.bytes, interval_.bytes + interval_.size};
    std::fill_n(dc_, kMaxComponents, 0);
    mcu_ = interval_.mcus.begin;
    begin_chunk();
  }

  void begin_chunk() {
    const ScanTables& tables = *scan_.tables;
    chunk_end_ = std::min(mcu_ + tables.chunk_mcus(), interval_.mcus.end);
    end_ = static_cast<uint32_t>((chunk_end_ - mcu_) * tables.blocks_per_mcu()) * 64;
    cursor_ = Cursor(cursor_.at, tables.steps());
  }

  bool finish_chunk() {
    if (cursor_.at.bits_left() < 0) return false;  // the interval ends too early
    sum_dc(scan_, chunk_end_ - mcu_, dc_, coefficients_);
    reconstruct(scan_, {mcu_, chunk_end_}, coefficients_);
    std::memset(coefficients_, 0, end_ * sizeof *coefficients_);
    mcu_ = chunk_end_;
    if (mcu_ < interval_.mcus.end) {
      begin_chunk();
      return true;
    }
    if (interval_.whole && cursor_.at.bits_left() >= 8) return false;  // bytes are left over
    begin_interval();
    return true;
  }

  const Scan& scan_;
  IntervalSource& source_;
  const int index_;
  bool active_ = false;
  Interval interval_;
  Cursor cursor_{{}, scan_.tables->steps()};
  int mcu_ = 0, chunk_end_ = 0;  // the chunk
  uint32_t end_ = 0;             // its end as a position
  int dc_[kMaxComponents] = {};
  alignas(64) int16_t coefficients_[kChunkBlocks * 64] = {};
};

bool decode_intervals(const Scan& scan, IntervalSource& source) {
  Lane first(scan, source, 0), second(scan, source, 1);
  while (first.active() && second.active()) {
    if (!Lane::decode_both(first, second)) return false;
  }
  Lane& rest = first.active() ? first : second;
  while (rest.active()) {
    if (!rest.decode_rest()) return false;
  }
  return true;
}
