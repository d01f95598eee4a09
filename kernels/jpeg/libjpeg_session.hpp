// Shared by the two users of libjpeg: error handling that turns its callbacks into exceptions.
//
// libjpeg is C and may lack unwind tables, so its error callback must not throw. It jumps back to
// guarded(), which throws from C++. The jump skips destructors: a guarded body may hold only
// trivially destructible locals, and what it allocates belongs to an object outside of it.
#pragma once

#include <cstdio>  // jpeglib.h needs FILE and does not include it

#include <jpeglib.h>

#include <csetjmp>

#include "common.hpp"

namespace fastselfie::jpeg {

class LibjpegErrors {
 public:
  LibjpegErrors() {
    jpeg_std_error(&manager_);
    manager_.error_exit = fail;
    manager_.emit_message = [](j_common_ptr info, int level) {
      if (level < 0) fail(info);  // a warning
    };
    manager_.output_message = [](j_common_ptr) {};
    progress_.progress_monitor = [](j_common_ptr info) {
      const auto* decompress = reinterpret_cast<j_decompress_ptr>(info);
      if (info->is_decompressor && decompress->input_scan_number > kMaxScans) {
        self_of(info)->leave("more scans than any encoder writes");
      }
    };
  }
  LibjpegErrors(const LibjpegErrors&) = delete;
  LibjpegErrors& operator=(const LibjpegErrors&) = delete;

  jpeg_error_mgr* manager() { return &manager_; }
  jpeg_progress_mgr* progress() { return &progress_; }

  // Runs body(); throws what libjpeg finds wrong.
  template <typename Body>
  void guarded(Body&& body) {
    if (setjmp(jump_) != 0) throw Error(std::string("libjpeg: ") + message_);
    body();
  }

 private:
  // A progressive file may hold any number of scans that each cost a pass over the whole image.
  static constexpr int kMaxScans = 256;

  // manager_ is the first member, so that libjpeg's pointer to it leads back to this object.
  static LibjpegErrors* self_of(j_common_ptr info) {
    return reinterpret_cast<LibjpegErrors*>(info->err);
  }
  [[noreturn]] static void fail(j_common_ptr info) {
    char message[JMSG_LENGTH_MAX];
    info->err->format_message(info, message);
    self_of(info)->leave(message);
  }
  [[noreturn]] void leave(const char* message) {
    std::snprintf(message_, sizeof message_, "%s", message);
    std::longjmp(jump_, 1);
  }

  jpeg_error_mgr manager_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf jump_;
  char message_[JMSG_LENGTH_MAX] = "";
};

}  // namespace fastselfie::jpeg
