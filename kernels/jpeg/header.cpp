// Parsing of a JPEG's marker segments: see header.hpp.
#include "header.hpp"

#include <algorithm>
#include <cstring>

#include "kernels.hpp"

namespace fastselfie::jpeg {
namespace {

enum Marker : uint8_t {
  kSOF0 = 0xC0,
  kSOF1 = 0xC1,
  kSOF2 = 0xC2,
  kDHT = 0xC4,
  kDAC = 0xCC,
  kSOF15 = 0xCF,
  kRST0 = 0xD0,
  kRST7 = 0xD7,
  kSOI = 0xD8,
  kEOI = 0xD9,
  kSOS = 0xDA,
  kDQT = 0xDB,
  kDNL = 0xDC,
  kDRI = 0xDD,
  kAPP0 = 0xE0,
  kAPP14 = 0xEE,
  kAPP15 = 0xEF,
  kCOM = 0xFE,
  kTEM = 0x01,
};

// A cursor over bytes whose every read is checked.
class Reader {
 public:
  Reader(Bytes bytes, size_t position) : bytes_(bytes), position_(position) {}

  size_t position() const { return position_; }
  size_t left() const { return bytes_.size - position_; }

  uint8_t u8() {
    if (left() < 1) throw Error("truncated: the file ends inside its header");
    return bytes_.data[position_++];
  }
  uint16_t u16() {
    const int high = u8();
    return static_cast<uint16_t>(high << 8 | u8());
  }
  const uint8_t* take(size_t n) {
    if (left() < n) throw Error("truncated: the file ends inside its header");
    const uint8_t* p = bytes_.data + position_;
    position_ += n;
    return p;
  }

 private:
  Bytes bytes_;
  size_t position_;
};

struct Parser {
  Header header;
  bool seen_frame = false, seen_jfif = false;
  int adobe_transform = -1;

  void segment(int marker, Bytes body);
  void quant_tables(Reader segment);
  void huffman_tables(Reader segment);
  void frame(Reader segment);
  void scan(Reader segment);
  void color_model();
};

void Parser::quant_tables(Reader segment) {
  while (segment.left() > 0) {
    const int pq_tq = segment.u8(), precision = pq_tq >> 4, table = pq_tq & 15;
    if (table > 3) throw Error("bad quantisation table");
    for (uint16_t& q : header.quant[table]) q = precision ? segment.u16() : segment.u8();
    header.quant_defined[table] = true;
  }
}

void Parser::huffman_tables(Reader segment) {
  while (segment.left() > 0) {
    const int tc_th = segment.u8(), table_class = tc_th >> 4, table = tc_th & 15;
    if (table_class > 1 || table > 3) throw Error("bad Huffman table");
    HuffmanSpec& spec = (table_class ? header.ac_specs : header.dc_specs)[table];
    int total = 0;
    for (uint8_t& count : spec.counts) total += count = segment.u8();
    if (total > 256) throw Error("bad Huffman table: more than 256 codes");
    std::memcpy(spec.symbols.data(), segment.take(total), total);
    spec.defined = true;
  }
}

void Parser::frame(Reader segment) {
  if (seen_frame) throw Error("two frame headers");
  seen_frame = true;
  if (segment.u8() != 8) throw Unsupported("not 8 bits a sample");
  header.size.height = segment.u16();
  header.size.width = segment.u16();
  if (header.size.width == 0 || header.size.height == 0) throw Error("an image of zero size");
  if (int64_t{header.size.width} * header.size.height > kMaxPixels) {
    throw Error("too large: " + std::to_string(header.size.width) + "x" +
                std::to_string(header.size.height) + " pixels");
  }
  header.num_components = segment.u8();
  if (header.num_components == 4) throw Unsupported("CMYK or YCCK");
  if (header.num_components != 1 && header.num_components != 3) {
    throw Unsupported(std::to_string(header.num_components) + " components");
  }
  for (int i = 0; i < header.num_components; ++i) {
    Component& c = header.components[i];
    c.id = segment.u8();
    const int factors = segment.u8();
    c.h = factors >> 4;
    c.v = factors & 15;
    c.quant_table = segment.u8();
    if (c.h < 1 || c.h > 4 || c.v < 1 || c.v > 4) throw Error("bad sampling factors");
    if (c.quant_table > 3) throw Error("bad quantisation table index");
    if (header.num_components == 1) c.h = c.v = 1;
    header.h_max = std::max(header.h_max, c.h);
    header.v_max = std::max(header.v_max, c.v);
  }
  if (segment.left() > 0) throw Error("bad frame header: its length is wrong");
}

void Parser::scan(Reader segment) {
  const int count = segment.u8();
  if (count < 1 || count > header.num_components) throw Error("bad scan header");
  header.single_scan = count == header.num_components;
  int blocks = 0;
  for (int i = 0; i < count; ++i) {
    const int id = segment.u8(), tables = segment.u8();
    if (!header.single_scan) continue;  // libjpeg decodes such files; only it needs the tables
    Component& c = header.components[i];
    if (c.id != id) throw Error("bad scan header: components out of order");
    c.dc_table = tables >> 4;
    c.ac_table = tables & 15;
    blocks += c.h * c.v;
    if (header.progressive) continue;  // its first scan uses no AC table
    if (c.dc_table > 3 || c.ac_table > 3) throw Error("bad scan header");
    add_standard_huffman(false, c.dc_table, header.dc_specs[c.dc_table]);
    add_standard_huffman(true, c.ac_table, header.ac_specs[c.ac_table]);
  }
  if (count > 1 && blocks > 10) throw Error("bad sampling factors: more than 10 blocks an MCU");
  // The spectral selection: of a sequential scan it is the whole whatever is written here. Some
  // phones write zeros.
  segment.take(3);
  if (segment.left() > 0) throw Error("bad scan header: its length is wrong");
}

// As libjpeg decides, so that both read a file alike: JFIF means YCbCr, else Adobe's flag decides,
// else the component ids.
void Parser::color_model() {
  if (header.num_components == 1) {
    header.color = ColorModel::kGray;
    return;
  }
  const auto& c = header.components;
  const bool ids_say_rgb = c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B';
  const bool rgb = !seen_jfif && (adobe_transform >= 0 ? adobe_transform == 0 : ids_say_rgb);
  header.color = rgb ? ColorModel::kRgb : ColorModel::kYCbCr;
}

// Any Huffman-coded block takes at least one bit of the file, so a header that promises more blocks
// than there are bits lies. Known before a byte is allocated.
void require_plausible_size(const Header& header, size_t scan_bytes) {
  int64_t blocks = 0;
  for (int i = 0; i < header.num_components; ++i) {
    const Size size = header.component_blocks(header.components[i]);
    blocks += int64_t{size.width} * size.height;
  }
  if (blocks / 8 > static_cast<int64_t>(scan_bytes)) {
    throw Error("truncated: too few bytes for " + std::to_string(header.size.width) + "x" +
                std::to_string(header.size.height) + " pixels");
  }
}

bool is_standalone(int marker) {
  return marker == kTEM || (marker >= kRST0 && marker <= kRST7);
}

// Segments that say nothing about the pixels, or (DAC) only of arithmetic coding.
bool is_skipped(int marker) {
  return (marker >= kAPP0 && marker <= kAPP15) || marker == kCOM || marker == kDNL ||
         marker == kDAC;
}

// Only fill bytes may stand between two segments (T.81 B.1.1.2). Like libjpeg this skips whatever
// else is there, a stuffed 0xFF as well.
int next_marker(Reader& reader) {
  for (;;) {
    while (reader.u8() != 0xFF) {
    }
    int marker = reader.u8();
    while (marker == 0xFF) marker = reader.u8();
    if (marker != 0) return marker;
  }
}

void Parser::segment(int marker, Bytes body) {
  const Reader segment(body, 0);
  if (marker == kSOF0 || marker == kSOF1 || marker == kSOF2) {
    header.progressive = marker == kSOF2;
    frame(segment);
  } else if (marker == kDHT) {
    huffman_tables(segment);
  } else if (marker == kDQT) {
    quant_tables(segment);
  } else if (marker == kDRI) {
    if (body.size != 2) throw Error("bad restart interval: its length is wrong");
    header.restart_interval = Reader(segment).u16();
  } else if (marker == kAPP0) {
    if (body.size < 14 || std::memcmp(body.data, "JFIF", 5) != 0) return;
    seen_jfif = true;
    std::copy_n(body.data + 5, header.jfif.size(), header.jfif.begin());
  } else if (marker == kAPP14) {
    if (body.size >= 12 && std::memcmp(body.data, "Adobe", 5) == 0) adobe_transform = body.data[11];
  } else if (marker > kSOF2 && marker <= kSOF15 && marker != kDAC) {
    throw Unsupported("a lossless, hierarchical or arithmetic-coded JPEG");
  } else if (!is_skipped(marker)) {
    throw Error("corrupt header: a misplaced marker");
  }
}

}  // namespace

Header parse_header(Bytes jpeg) {
  Reader reader(jpeg, 0);
  if (jpeg.size < 4 || reader.u8() != 0xFF || reader.u8() != kSOI) throw Error("not a JPEG");
  Parser parser;
  for (;;) {
    const int marker = next_marker(reader);
    if (is_standalone(marker)) continue;
    if (marker == kSOI || marker == kEOI) throw Error("corrupt header: a misplaced marker");
    const size_t length = reader.u16();
    // libjpeg skips a segment of less than its own length field as an empty one.
    if (length < 2 && !is_skipped(marker)) throw Error("corrupt header: a segment without length");
    const size_t size = std::max<size_t>(length, 2) - 2;
    const Bytes body{reader.take(size), size};
    if (marker == kSOS) {
      if (!parser.seen_frame) throw Error("corrupt header: a scan before its frame");
      parser.scan(Reader(body, 0));
      parser.color_model();
      parser.header.scan_offset = reader.position();
      require_plausible_size(parser.header, reader.left());
      return parser.header;
    }
    if (marker >= kSOF0 && marker <= kSOF2) parser.header.frame_offset = body.data - jpeg.data;
    parser.segment(marker, body);
  }
}

bool index_intervals(Bytes jpeg, const Header& header, std::vector<Bytes>& intervals) {
  intervals.clear();
  const uint8_t* begin = jpeg.data + header.scan_offset;
  const uint8_t* const end = jpeg.data + jpeg.size;
  const size_t expected =
      header.restart_interval ? ceil_div(header.mcu_count(), header.restart_interval) : 1;
  const auto find_marker = kernels().find_marker;
  for (const uint8_t* p = begin;;) {
    const uint8_t* const ff = p = find_marker(p, end);
    while (p < end && *p == 0xFF) ++p;  // fill bytes
    const int marker = p < end ? *p++ : -1;  // -1: the file ends without one
    if (marker == 0) continue;  // a stuffed 0xFF behind fill bytes
    intervals.push_back({begin, static_cast<size_t>(ff - begin)});
    if (marker < kRST0 || marker > kRST7 || intervals.size() == expected) {
      if (intervals.size() == expected) return marker == kEOI;
      throw Error("corrupt scan: " + std::to_string(intervals.size()) +
                  " restart intervals where " + std::to_string(expected) + " were expected");
    }
    // libjpeg takes a number that is one or two away for another interval's, any other as it is.
    const int ahead = (marker - kRST0 - static_cast<int>(intervals.size() - 1)) & 7;
    if (ahead != 0 && (ahead < 3 || ahead > 5)) {
      throw Error("corrupt scan: restart markers out of order");
    }
    begin = p;
  }
}

}  // namespace fastselfie::jpeg
