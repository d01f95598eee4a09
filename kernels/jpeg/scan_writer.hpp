// The writing of a baseline JPEG from the symbols of its scan.
#pragma once

#include "tokens.hpp"

namespace fastselfie::jpeg {

// The version, the unit and the densities of a JFIF segment, as stored.
using Jfif = std::array<uint8_t, 7>;

// One interleaved scan with Huffman tables made for it. Of the header this needs the size, the
// components and the quantisation tables, with steps of 8 bits.
std::vector<uint8_t> write_jpeg(const Header& header, const Jfif& jfif, const Tokens& tokens);

}  // namespace fastselfie::jpeg
