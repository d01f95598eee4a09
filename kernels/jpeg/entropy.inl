// The entropy decoder of baseline JPEG (T.81 F.2.2).
//
// Its speed is the latency from one lookup to the next, and a misprediction of a branch costs more
// than two lookups. So the loop over a chunk of blocks has no branch that depends on usual data: a
// lookup gives up to two coefficients (see huffman.hpp), and the end of a block is a conditional
// move to the next table.

// At least 56 bits are there afterwards. Eight bytes are loaded whatever the need; those that do not
// fit are simply loaded again next time, which is cheaper than a branch.
inline void refill(BitPosition& at) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  uint64_t word;
  std::memcpy(&word, at.next, 8);
  at.bits |= __builtin_bswap64(word) >> (at.count & 63);
  const uint8_t* const next = at.next + (~at.count >> 3 & 7);
  const uint8_t* const stop = at.end + kReadBehind;
  at.next = next < stop ? next : stop;
  at.count |= 56;
}

// The six lowest bits of `n` count. So do those of at.count, until decode_chunk() is done.
inline void consume(BitPosition& at, int n) {
  at.bits <<= n & 63;
  at.count -= n;
}

// A chunk in the making.
struct Cursor {
  BitPosition at;
  const TableStep* next_step;
  TableStep step;
  uint32_t position;  // block * 64 + coefficient index

  Cursor(const BitPosition& begin, const TableStep* steps)
      : at(begin), next_step(steps + 1), step(*steps), position(0) {}
};

// The value of `size` bits at the top of `bits`, as T.81 F.2.2.1 extends it. `rest`: 63 - size.
inline int extended_value(uint64_t bits, int rest) {
  const uint64_t negative = ~static_cast<uint64_t>(static_cast<int64_t>(bits) >> 63);
  const uint64_t magnitude = (bits ^ negative) >> 1 >> (rest & 63);
  return static_cast<int>((magnitude ^ negative) - negative);
}

// Where coefficient k of a block is stored.
enum class Order { kNatural, kZigzag };

template <Order kOrder>
inline int place(uint32_t k) {
  return kOrder == Order::kNatural ? kNaturalOrder[k] : static_cast<int>(k);
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
  const uint32_t block = cursor.position & ~63u, k = (cursor.position & 63) + advance;
  if (advance < 0 || k > 64) return false;
  if (advance > 0) {
    coefficients[block + place<kOrder>(k - 1)] =
        static_cast<int16_t>(extended_value(bits << length, 63 - size));
  }
  consume(cursor.at, length + size);
  cursor.position = advance == 0 ? block + 64 : block + k;
  if (!table.is_ac || advance == 0 || k == 64) {
    cursor.step = *cursor.next_step++;
  }
  return true;
}

// `chosen` where `condition`, else `other`, by a conditional move: no branch to mispredict.
template <typename Value>
inline Value select(bool condition, Value chosen, Value other) {
  return __builtin_expect_with_probability(condition, 1, 0.5) ? chosen : other;
}

using F = HuffmanFields;

// One lookup. It takes at most 27 bits, so that two fit one refill.
template <Order kOrder>
inline bool decode_entry(Cursor& cursor, int16_t* coefficients) {
  const HuffmanEntry entry = table_of(cursor.step).lookup[cursor.at.bits >> (cursor.step & 63)];
  const uint32_t k = cursor.position & 63, block = cursor.position - k;
  const uint32_t advance = static_cast<uint32_t>(entry) >> F::kAdvance;
  if (__builtin_expect(k + advance >= 64, 0)) {
    Cursor copy = cursor;  // of its own, so that the loop's stays in registers
    const bool good = decode_symbol<kOrder>(copy, coefficients);
    cursor = copy;
    return good;
  }
  int16_t* const values = coefficients + block;
  values[place<kOrder>(k + (entry >> F::kFirstPlace))] =
      static_cast<int16_t>(entry >> F::kFirstValue);
  values[place<kOrder>(k + (entry >> F::kLastPlace & 0xFF))] =
      static_cast<int16_t>(extended_value(cursor.at.bits << (entry >> F::kBitsBefore & 63),
                                          static_cast<int>(entry >> F::kLastSize)));
  consume(cursor.at, static_cast<int>(entry));
  cursor.position =
      select(entry & HuffmanTable::kEndOfBlock, block + 64, cursor.position + advance);
  const bool done = entry & HuffmanTable::kNextTable;
  TableStep next_step = *cursor.next_step;
  asm("" : "+r"(next_step));  // loaded in any case, which leaves a register to choose
  cursor.step = select(done, next_step, cursor.step);
  cursor.next_step += done;
  return true;
}

// Not inlined: the loop needs every register.
template <Order kOrder>
[[gnu::noinline]] bool decode_chunk(const ScanTables& tables, int blocks, BitPosition& at,
                         int16_t* coefficients) {
  Cursor cursor(at, tables.steps());
  const uint32_t end = static_cast<uint32_t>(blocks) * 64;
  while (cursor.position < end) {
    refill(cursor.at);
    if (!decode_entry<kOrder>(cursor, coefficients)) break;
    if (cursor.position >= end) break;
    if (!decode_entry<kOrder>(cursor, coefficients)) break;
  }
  at = cursor.at;
  at.count &= 63;
  return cursor.position >= end;
}

bool decode_coefficients(const ScanTables& tables, int blocks, BitPosition& position,
                         int16_t* coefficients) {
  return decode_chunk<Order::kZigzag>(tables, blocks, position, coefficients);
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

bool decode_interval(const Scan& scan, const uint8_t* bytes, size_t size, Range mcus, bool whole) {
  alignas(64) int16_t coefficients[kChunkBlocks * 64] = {};
  int dc[kMaxComponents] = {};
  BitPosition at{0, 0, bytes, bytes + size};
  const int chunk = scan.tables->chunk_mcus();
  for (int mcu = mcus.begin; mcu < mcus.end; mcu += chunk) {
    const int end = std::min(mcu + chunk, mcus.end);
    const int blocks = (end - mcu) * scan.tables->blocks_per_mcu();
    if (!decode_chunk<Order::kNatural>(*scan.tables, blocks, at, coefficients)) return false;
    if (at.bits_left() < 0) return false;  // the interval ends too early
    sum_dc(scan, end - mcu, dc, coefficients);
    reconstruct(scan, {mcu, end}, coefficients);
    std::memset(coefficients, 0, size_t{64} * blocks * sizeof *coefficients);
  }
  return !whole || at.bits_left() < 8;  // no bytes are left over
}
