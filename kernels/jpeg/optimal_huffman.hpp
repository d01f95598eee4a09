// The best Huffman table for given frequencies.
#pragma once

#include "header.hpp"

namespace fastselfie::jpeg {

// T.81 annex K.2, with its ties broken as libjpeg breaks them: the same table, bit for bit.
// `counts`: of each of 256 symbols, not all zero.
HuffmanSpec optimal_huffman(const uint32_t* counts);

}  // namespace fastselfie::jpeg
