// libjpeg(-turbo) behind RAII and exceptions: the lossless transcode, the coefficients, and the
// reference decoder, which also takes whatever the fast decoder does not (progressive, many scans).
//
// Every warning of libjpeg is an error here: a corrupt image must never train silently.
#pragma once

#include <memory>

#include "crop.hpp"
#include "plan.hpp"

namespace fastselfie::jpeg {

// Lossless: baseline, one interleaved scan, optimised Huffman tables, and a restart interval of the
// largest number of MCUs that is at most `restart_mcus` (0: 64 pixels' worth) and divides a row.
// Application segments and comments are dropped. Throws for what cannot be kept without loss as
// 8-bit YCbCr or gray.
std::vector<uint8_t> transcode(Bytes jpeg, int restart_mcus);

// The quantised DCT coefficients of one component, blocks in row order, natural order within.
struct Coefficients {
  int block_rows = 0, block_columns = 0;
  std::vector<int16_t> values;
};
std::vector<Coefficients> read_coefficients(Bytes jpeg);

// A libjpeg decompressor whose memory is reused from image to image. One thread's.
class LibjpegDecoder {
 public:
  LibjpegDecoder();
  ~LibjpegDecoder();

  // Fills `planes` with the plan's blocks. Cuts the bitstream first where it can.
  void decode(Bytes jpeg, const Header& header, const Plan& plan, Plane* planes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fastselfie::jpeg
