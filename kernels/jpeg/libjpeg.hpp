// libjpeg(-turbo) behind RAII and exceptions: the reference decoder, which also takes whatever the
// fast decoder does not (progressive, many scans).
//
// A warning of libjpeg that pixels are lost is an error here: a corrupt image must never train
// silently.
#pragma once

#include <memory>

#include "crop.hpp"
#include "plan.hpp"

namespace fastselfie::jpeg {

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
