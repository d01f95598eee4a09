// The search for markers, and the undoing of byte stuffing. Intervals are so short that calls of
// memchr() and memcpy() for each 0xFF cost more than the search.

const uint8_t* find_marker(const uint8_t* p, const uint8_t* end) {
  constexpr int kStep = sizeof(Search);
  for (; end - p > kStep; p += kStep) {
    const Search behind = load<Search>(p + 1);
    const int found = first_set((load<Search>(p) == 0xFF) & behind);
    if (found < kStep) return p + found;
  }
  while (p < end && !(*p == 0xFF && (p + 1 == end || p[1] != 0))) ++p;
  return p;
}

// Copies whole vectors as long as there are any.
template <typename Vector, typename SkipZero>
inline void copy_unstuffed(const uint8_t*& in, const uint8_t* end, uint8_t*& to,
                           const SkipZero& skip_zero) {
  constexpr int kStep = sizeof(Vector);
  while (end - in >= kStep) {
    const auto bytes = load<Vector>(in);
    store(to, bytes);
    const int ff = first_set((Vector)(bytes == 0xFF));
    const int taken = std::min(ff + 1, kStep);
    to += taken;
    in += taken;
    if (ff < kStep) skip_zero();
  }
}

size_t unstuff(Bytes interval, uint8_t* out) {
  const uint8_t* in = interval.data;
  const uint8_t* const end = in + interval.size;
  uint8_t* to = out;
  const auto skip_zero = [&] {
    while (in < end && *in == 0xFF) ++in;  // fill bytes
    ++in;  // index_intervals() has seen that a zero follows
  };
  if constexpr (sizeof(Search) > 16) copy_unstuffed<Search>(in, end, to, skip_zero);
  copy_unstuffed<U8x16>(in, end, to, skip_zero);
  while (in < end) {
    *to++ = *in;
    if (*in++ == 0xFF) skip_zero();
  }
  return to - out;
}
