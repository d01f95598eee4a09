// A scan between its reading and its writing: the symbols that baseline JPEG codes it in (T.81
// F.1.2) and how often each occurs, which is what the best Huffman tables are made from.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>

#include "header.hpp"

namespace fastselfie::jpeg {

// A symbol with the bits of its value: table << 24 | symbol << 16 | bits. `table` is one of the
// output's four, in the order in which the file defines them: DC and AC of the first component, DC
// and AC of the others.
using Token = uint32_t;
constexpr int kTokenTables = 4;

class Tokens {
 public:
  // Restart intervals are of `interval` MCUs. `expected` tokens fit without growing.
  Tokens(int interval, size_t expected)
      : interval_(interval), capacity_(expected + kMaxPerMcu), tokens_(new Token[capacity_]) {}

  // Before the blocks of each MCU. A block is its DC, its AC coefficients that are not zero, and an
  // end where only zeros are left.
  void begin_mcu() {
    if (left_in_interval_ == 0) {
      if (size_ > 0) ends_.push_back(size_);
      left_in_interval_ = interval_;
      dc_.fill(0);
    }
    --left_in_interval_;
    if (capacity_ - size_ < kMaxPerMcu) grow();
  }

  void add_dc(int component, int value) {
    add_value(dc_table(component), 0, value - dc_[component], 11);
    dc_[component] = value;
  }
  // A value that follows so many zeros.
  void add_ac(int component, int zeros, int value) {
    for (; zeros > 15; zeros -= 16) add(ac_table(component), 0xF0, 0);
    add_value(ac_table(component), zeros, value, 10);
  }
  void add_end_of_block(int component) { add(ac_table(component), 0, 0); }
  // A block outside of the image, which only fills up an MCU: the mean of the one before.
  void add_filler(int component) {
    add(dc_table(component), 0, 0);
    add_end_of_block(component);
  }

  // Forgets the tokens, not their counts nor the intervals.
  void clear() { size_ = 0; }

  int interval() const { return interval_; }
  const Token* data() const { return tokens_.get(); }
  // Where each restart interval ends.
  std::vector<size_t> ends() const {
    std::vector<size_t> ends = ends_;
    ends.push_back(size_);
    return ends;
  }
  // The number of occurrences of each of a table's 256 symbols.
  const uint32_t* counts(int table) const { return &counts_[table * 256]; }

 private:
  static constexpr size_t kMaxPerMcu = 10 * 65;  // ten blocks is T.81's limit

  static int dc_table(int component) { return component == 0 ? 0 : 2; }
  static int ac_table(int component) { return component == 0 ? 1 : 3; }

  void add(int table, int symbol, uint32_t bits) {
    const auto code = static_cast<uint32_t>(table << 8 | symbol);
    ++counts_[code];
    tokens_[size_++] = code << 16 | bits;
  }
  void add_value(int table, int zeros, int value, int max_size) {
    const int size = 31 - __builtin_clz(2 * static_cast<uint32_t>(std::abs(value)) + 1);
    if (size > max_size) throw Error("corrupt scan: a DCT coefficient out of range");
    // A negative value is stored as what precedes it: its leading bit tells the sign.
    const int bits = (value - (value < 0)) & ((1 << size) - 1);
    add(table, zeros << 4 | size, static_cast<uint32_t>(bits));
  }
  void grow() {
    std::unique_ptr<Token[]> larger(new Token[2 * capacity_]);
    std::memcpy(larger.get(), tokens_.get(), size_ * sizeof(Token));
    tokens_ = std::move(larger);
    capacity_ *= 2;
  }

  const int interval_;
  int left_in_interval_ = 0;
  std::array<int, kMaxComponents> dc_{};
  std::array<uint32_t, kTokenTables * 256> counts_{};
  std::vector<size_t> ends_;
  size_t size_ = 0, capacity_;
  std::unique_ptr<Token[]> tokens_;  // not a vector: that would clear what it gets
};

}  // namespace fastselfie::jpeg
