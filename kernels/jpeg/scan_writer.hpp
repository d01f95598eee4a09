// The writing of a baseline JPEG from the symbols of its scan.
#pragma once

#include "tokens.hpp"

namespace fastselfie::jpeg {

// One interleaved scan with Huffman tables made for it. Of the header this needs the size, the
// components, the quantisation tables, with steps of 8 bits, and what JFIF says.
std::vector<uint8_t> write_jpeg(const Header& header, const Tokens& tokens);

}  // namespace fastselfie::jpeg
