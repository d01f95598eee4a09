// The entropy decoder of baseline JPEG (T.81 F.2.2), fused with the inverse DCT block by block.
#include "symbols.inl"

// Coefficients in zigzag order -> natural order. An index past 63 (a corrupt run, or the step of
// end-of-block) leads to the spare place behind the block.
struct Zigzag {
  uint8_t natural[64 + HuffmanTable::kEndOfBlock + 16];
  constexpr Zigzag() : natural() {
    for (size_t k = 0; k < sizeof natural; ++k) natural[k] = k < 64 ? kNaturalOrder[k] : 64;
  }
};
constexpr Zigzag kZigzag;

struct alignas(64) Block {
  int16_t values[64 + 8] = {};  // with a spare place for what lies past the end
};

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

bool decode_interval(const Scan& scan, const uint8_t* bytes, size_t size, Range mcus,
                            bool whole) {
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
          if (count == 0) return false;  // a bad code
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
    if (reader.bits_left() < 0) return false;  // the interval ends too early
    if (++mcu_x == scan.mcus_per_row) {
      mcu_x = 0;
      ++mcu_y;
    }
  }
  return !whole || reader.bits_left() < 8;  // no bytes are left over
}
