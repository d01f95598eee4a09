// The inverse DCT, whole and reduced: libjpeg's "islow" algorithms (jidctint.c, jidctred.c;
// Loeffler, Ligtenberg and Moschytz 1989 in 13-bit fixed point), the same to the last bit for any
// valid block.
//
// kBlocks blocks are transformed at once, each in 128 bits of every vector. The products are sums of
// pairs in 32 bits, which processors multiply and add in one instruction; between the two passes
// values are of 16 bits and saturate. Only a hostile block comes that far.

constexpr int kConstBits = 13;
constexpr int kPass1Bits = 2;

constexpr int fixed(double x) {
  return static_cast<int>(x * (1 << kConstBits) + (x < 0 ? -0.5 : 0.5));
}

// 8 -> 8 points. Sums of the algorithm's constants, so that each output is a sum of products.
template <int kShift>
inline void idct_1d_8(Words (&v)[8]) {
  constexpr int k0 = fixed(0.541196100), k1 = fixed(0.765366865), k2 = fixed(-1.847759065);
  const Pair v04 = pair(v[0], v[4]), v26 = pair(v[2], v[6]);
  const Wide even0 = dot(v04, 1 << kConstBits, 1 << kConstBits);
  const Wide even1 = dot(v04, 1 << kConstBits, -(1 << kConstBits));
  const Wide even2 = dot(v26, k0, k0 + k2), even3 = dot(v26, k0 + k1, k0);
  const Wide e0 = even0 + even3, e3 = even0 - even3, e1 = even1 + even2, e2 = even1 - even2;

  constexpr int z1 = fixed(-0.899976223), z2 = fixed(-2.562915447), z5 = fixed(1.175875602);
  constexpr int z3 = fixed(-1.961570560) + z5, z4 = fixed(-0.390180644) + z5;
  const Pair v73 = pair(v[7], v[3]), v51 = pair(v[5], v[1]);
  const Wide o0 = dot(v73, fixed(0.298631336) + z1 + z3, z3) + dot(v51, z5, z1 + z5);
  const Wide o1 = dot(v73, z5, z2 + z5) + dot(v51, fixed(2.053119869) + z2 + z4, z4);
  const Wide o2 = dot(v73, z3, fixed(3.072711026) + z2 + z3) + dot(v51, z2 + z5, z5);
  const Wide o3 = dot(v73, z1 + z5, z5) + dot(v51, z4, fixed(1.501321110) + z1 + z4);

  v[0] = descale<kShift>(e0 + o3);
  v[7] = descale<kShift>(e0 - o3);
  v[1] = descale<kShift>(e1 + o2);
  v[6] = descale<kShift>(e1 - o2);
  v[2] = descale<kShift>(e2 + o1);
  v[5] = descale<kShift>(e2 - o1);
  v[3] = descale<kShift>(e3 + o0);
  v[4] = descale<kShift>(e3 - o0);
}

// 8 -> 4 points; v[4] has no part in it.
template <int kShift>
inline void idct_1d_4(Words (&v)[8]) {
  const Wide even0 = dot(pair(v[0], v[4]), 1 << (kConstBits + 1), 0);
  const Wide even2 = dot(pair(v[2], v[6]), fixed(1.847759065), fixed(-0.765366865));
  const Pair v75 = pair(v[7], v[5]), v31 = pair(v[3], v[1]);
  const Wide odd0 = dot(v75, fixed(-0.211164243), fixed(1.451774981)) +
                    dot(v31, fixed(-2.172734803), fixed(1.061594337));
  const Wide odd2 = dot(v75, fixed(-0.509795579), fixed(-0.601344887)) +
                    dot(v31, fixed(0.899976223), fixed(2.562915447));
  const Wide e0 = even0 + even2, e1 = even0 - even2;
  v[0] = descale<kShift + 1>(e0 + odd2);
  v[3] = descale<kShift + 1>(e0 - odd2);
  v[1] = descale<kShift + 1>(e1 + odd0);
  v[2] = descale<kShift + 1>(e1 - odd0);
}

// 8 -> 2 points, from v[0] and the odd ones.
template <int kShift>
inline void idct_1d_2(Words (&v)[8]) {
  const Wide even = dot(pair(v[0], v[0]), 1 << (kConstBits + 1), 1 << (kConstBits + 1));
  const Wide odd = dot(pair(v[7], v[5]), fixed(-0.720959822), fixed(0.850430095)) +
                   dot(pair(v[3], v[1]), fixed(-1.272758580), fixed(3.624509785));
  v[0] = descale<kShift + 2>(even + odd);
  v[1] = descale<kShift + 2>(even - odd);
}

template <int kSize, int kShift>
inline void idct_1d(Words (&v)[8]) {
  if constexpr (kSize == 8) {
    idct_1d_8<kShift>(v);
  } else if constexpr (kSize == 4) {
    idct_1d_4<kShift>(v);
  } else {
    idct_1d_2<kShift>(v);
  }
}

// The 8x8 values of each block. Interleaving vector i with vector i + 4, three times over, moves
// each bit of the row number below the bits of the column number.
inline void transpose(Words (&v)[8]) {
  Words w[8];
  const auto interleave = [](const Words(&a)[8], Words(&b)[8]) {
    for (int i = 0; i < 4; ++i) {
      b[2 * i] = interleave_low(a[i], a[i + 4]);
      b[2 * i + 1] = interleave_high(a[i], a[i + 4]);
    }
  };
  interleave(v, w);
  interleave(w, v);
  interleave(v, w);
  std::memcpy(v, w, sizeof w);
}

// The same for bytes, two rows of a block in each vector.
inline void transpose(Octets (&v)[4]) {
  Octets w[4];
  const auto interleave = [](const Octets(&a)[4], Octets(&b)[4]) {
    for (int i = 0; i < 2; ++i) {
      b[2 * i] = interleave_low(a[i], a[i + 2]);
      b[2 * i + 1] = interleave_high(a[i], a[i + 2]);
    }
  };
  interleave(v, w);
  interleave(w, v);
  interleave(v, w);
  std::memcpy(v, w, sizeof w);
}

// Blocks of one component on their way into its plane.
struct BlockQueue {
  const int16_t* coefficients[kBlocks];
  uint8_t* out[kBlocks];
  unsigned size = 0;
};

// Writes kSize lines of kSize samples a block, `step` bytes apart: rows of the image, or columns.
template <int kSize>
inline void idct_blocks(const BlockQueue& queue, const int16_t* quant, bool rows, ptrdiff_t step) {
  Words v[8];
  for (int row = 0; row < 8; ++row) {
    v[row] = multiply(load_blocks(queue.coefficients, 8 * row), repeat_block(quant + 8 * row));
  }
  idct_1d<kSize, kConstBits - kPass1Bits>(v);
  transpose(v);
  idct_1d<kSize, kConstBits + kPass1Bits + 3>(v);
  Octets lines[4];
  for (int i = 0; i < kSize / 2; ++i) lines[i] = to_octets(v[2 * i], v[2 * i + 1]);
  if (kSize == 8 && rows) transpose(lines);

  alignas(64) uint8_t bytes[kSize / 2][kBlocks][2][8];
  std::memcpy(bytes, lines, sizeof bytes);
  for (int block = 0; block < kBlocks; ++block) {
    uint8_t* out = queue.out[block];
    for (int i = 0; i < kSize; ++i, out += step) {
      std::memcpy(out, bytes[i / 2][block][i % 2], kSize);
    }
  }
}

// Empties the queue into the plane.
inline void reconstruct_blocks(BlockQueue& queue, const ComponentScan& component) {
  if (queue.size == 0) return;
  for (unsigned i = queue.size; i < kBlocks; ++i) {  // the first once more
    queue.coefficients[i] = queue.coefficients[0];
    queue.out[i] = queue.out[0];
  }
  const int16_t* const quant = component.quant.data();
  const Plane& plane = component.plane;
  switch (component.plan.block_size) {
    case 8: idct_blocks<8>(queue, quant, plane.by_rows, plane.step()); break;
    case 4: idct_blocks<4>(queue, quant, plane.by_rows, plane.step()); break;
    case 2: idct_blocks<2>(queue, quant, plane.by_rows, plane.step()); break;
    default:  // the mean, which is all that the reduction to 1x1 needs
      for (unsigned i = 0; i < queue.size; ++i) {
        const auto dc = static_cast<int16_t>(queue.coefficients[i][0] * quant[0]);
        *queue.out[i] = static_cast<uint8_t>(std::clamp((dc + 4) >> 3, -128, 127) + 128);
      }
  }
  queue.size = 0;
}
