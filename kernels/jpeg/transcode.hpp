// The lossless transcode to what the crop and the fast decoder read best.
#pragma once

#include "common.hpp"

namespace fastselfie::jpeg {

// Lossless: baseline, one interleaved scan, optimised Huffman tables, and a restart interval of the
// largest number of MCUs that is at most `restart_mcus` (0: 64 pixels' worth) and divides a row.
// Application segments and comments are dropped. Throws for what cannot be kept without loss as
// 8-bit YCbCr or gray.
std::vector<uint8_t> transcode(Bytes jpeg, int restart_mcus);

// Throws where transcode() does for a damaged file. Passes what is Unsupported there and whole.
void check(Bytes jpeg);

}  // namespace fastselfie::jpeg
