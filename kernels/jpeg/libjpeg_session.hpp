// Shared by the two users of libjpeg: error handling that turns its callbacks into exceptions.
//
// libjpeg is C and may lack unwind tables, so its error callback must not throw. It jumps back to
// guarded(), which throws from C++. The jump skips destructors: a guarded body may hold only
// trivially destructible locals, and what it allocates belongs to an object outside of it.
#pragma once

#include <cstdio>  // jpeglib.h needs FILE and does not include it

#include <jerror.h>
#include <jpeglib.h>

#include <algorithm>
#include <csetjmp>

#include "common.hpp"

namespace fastselfie::jpeg {

class LibjpegErrors {
 public:
  LibjpegErrors() {
    jpeg_std_error(&manager_);
    manager_.error_exit = [](j_common_ptr info) { self_of(info)->leave(info, false); };
    manager_.emit_message = [](j_common_ptr info, int level) {
      const bool warning = level < 0;
      if (warning && !self_of(info)->forgives(info)) self_of(info)->leave(info, true);
    };
    manager_.output_message = [](j_common_ptr) {};
    progress_.progress_monitor = [](j_common_ptr info) {
      const auto* decompress = reinterpret_cast<j_decompress_ptr>(info);
      if (info->is_decompressor && decompress->input_scan_number > kMaxScans) {
        self_of(info)->leave("more scans than any encoder writes", false);
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
    if (setjmp(jump_) != 0) {
      const std::string message = std::string("libjpeg: ") + message_;
      if (lost_) throw LostPixels(message);
      throw Error(message);
    }
    body();
  }

  // Before each image: its file.
  void begin(Bytes file) {
    file_ = file;
    file_ended_ = false;
  }

  // Once all scans are read: libjpeg says nothing of a component that never came, and of scans that
  // are missing behind the end of the file only that it is the end.
  void require_complete(const jpeg_decompress_struct& info) const {
    for (int i = 0; i < info.num_components; ++i) {
      bool complete = info.comp_info[i].quant_table != nullptr;
      if (info.coef_bits != nullptr) {  // of each coefficient the bits that still lack; -1: all
        const int* const bits = info.coef_bits[i];
        complete = bits[0] >= 0;
        if (file_ended_) complete = std::all_of(bits, bits + DCTSIZE2, [](int n) { return n == 0; });
      }
      if (!complete) throw LostPixels("truncated: a scan is missing");
    }
  }

 private:
  // A progressive file may hold any number of scans that each cost a pass over the whole image.
  static constexpr int kMaxScans = 256;

  // manager_ is the first member, so that libjpeg's pointer to it leads back to this object.
  static LibjpegErrors* self_of(j_common_ptr info) {
    return reinterpret_cast<LibjpegErrors*>(info->err);
  }
  // Whether a warning is of a field that decides no pixel, or of bytes that no pixel comes from.
  bool forgives(j_common_ptr info) {
    const int* const value = manager_.msg_parm.i;
    switch (manager_.msg_code) {
      case JWRN_ADOBE_XFORM:
      case JWRN_JFIF_MAJOR:
      case JWRN_NOT_SEQUENTIAL:  // wrong spectral selection
        return true;
      case JWRN_EXTRANEOUS_DATA:
        return is_padding(*reinterpret_cast<j_decompress_ptr>(info), static_cast<unsigned>(value[0]));
      case JWRN_JPEG_EOF:  // JWRN_HIT_MARKER follows where bits are missing
        file_ended_ = true;
        return true;
      case JWRN_BOGUS_PROGRESSION:  // AC coefficients before the DC, which may still come
        return reinterpret_cast<j_decompress_ptr>(info)->Ss > 0 && value[1] == 0;
      case JWRN_MUST_RESYNC: {  // jpeg_resync_to_restart() takes this number for a wrong label
        const int ahead = (value[0] - JPEG_RST0 - value[1]) & 7;
        return value[0] >= JPEG_RST0 && value[0] <= JPEG_RST0 + 7 && ahead >= 3 && ahead <= 5;
      }
      default: return false;
    }
  }
  // Whether the `count` bytes that libjpeg has just skipped hold no pixels. Before the first scan
  // they never do. Behind one they may: a decoder that lost its way ends too early. There they must
  // not look like coded data, or be too few to tell.
  bool is_padding(const jpeg_decompress_struct& info, size_t count) const {
    const uint8_t* const file_end = file_.data + file_.size;
    const uint8_t* const end = file_ended_ ? file_end : info.src->next_input_byte;
    if (info.input_scan_number == 0 || count <= sizeof(uint64_t)) return true;
    if (end < file_.data || count > static_cast<size_t>(end - file_.data)) return false;
    const uint8_t first = end[-static_cast<ptrdiff_t>(count)];
    return std::all_of(end - count, end, [first](uint8_t byte) {
      const bool is_text = (byte >= ' ' && byte <= '~') || (byte >= '\t' && byte <= '\r');
      return is_text || byte == first || byte == 0 || byte == 0xFF;
    });
  }
  [[noreturn]] void leave(j_common_ptr info, bool lost) {
    char message[JMSG_LENGTH_MAX];
    info->err->format_message(info, message);
    leave(message, lost);
  }
  [[noreturn]] void leave(const char* message, bool lost) {
    std::snprintf(message_, sizeof message_, "%s", message);
    lost_ = lost;
    std::longjmp(jump_, 1);
  }

  jpeg_error_mgr manager_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf jump_;
  char message_[JMSG_LENGTH_MAX] = "";
  Bytes file_;
  bool lost_ = false;        // what message_ says is that pixels are
  bool file_ended_ = false;  // before the end of the image
};

}  // namespace fastselfie::jpeg
