// Parsing of a JPEG's marker segments: see header.hpp.
#include "header.hpp"

#include <cstring>

namespace fastselfie::jpeg {
namespace {

enum Marker : uint8_t {
  kSOF0 = 0xC0,
  kSOF1 = 0xC1,
  kSOF2 = 0xC2,
  kDHT = 0xC4,
  kSOF15 = 0xCF,
  kRST0 = 0xD0,
  kRST7 = 0xD7,
  kSOI = 0xD8,
  kEOI = 0xD9,
  kSOS = 0xDA,
  kDQT = 0xDB,
  kDRI = 0xDD,
  kAPP0 = 0xE0,
  kAPP14 = 0xEE,
  kTEM = 0x01,
  kJPG = 0xC8,
  kDAC = 0xCC,
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

  void quant_tables(Reader segment);
  void huffman_tables(Reader segment);
  void frame(Reader segment);
  void scan(Reader segment);
  void color_model();
};

void Parser::quant_tables(Reader segment) {
  while (segment.left() > 0) {
    const int pq_tq = segment.u8(), precision = pq_tq >> 4, table = pq_tq & 15;
    if (precision > 1 || table > 3) throw Error("bad quantisation table");
    for (uint16_t& q : header.quant[table]) {
      q = precision ? segment.u16() : segment.u8();
      if (q == 0) throw Error("bad quantisation table: a step of zero");
    }
    header.quant_defined[table] = true;
  }
}

void Parser::huffman_tables(Reader segment) {
  while (segment.left() > 0) {
    const int tc_th = segment.u8(), table_class = tc_th >> 4, table = tc_th & 15;
    if (table_class > 1 || table > 3) throw Error("bad Huffman table");
    HuffmanSpec& spec = (table_class ? header.ac_specs : header.dc_specs)[table];
    int total = 0, code = 0;
    for (int length = 1; length <= 16; ++length) {
      const int count = segment.u8();
      spec.counts[length - 1] = static_cast<uint8_t>(count);
      total += count;
      code = (code << 1) + count;
      if (code > 1 << length) throw Error("bad Huffman table: more codes than its lengths allow");
    }
    if (total > 256) throw Error("bad Huffman table: more than 256 codes");
    std::memcpy(spec.symbols.data(), segment.take(total), total);
    spec.defined = true;
  }
}

void Parser::frame(Reader segment) {
  if (seen_frame) throw Error("two frame headers");
  seen_frame = true;
  if (segment.u8() != 8) throw Error("unsupported: not 8 bits a sample");
  header.size.height = segment.u16();
  header.size.width = segment.u16();
  if (header.size.width == 0 || header.size.height == 0) throw Error("an image of zero size");
  if (int64_t{header.size.width} * header.size.height > kMaxPixels) {
    throw Error("too large: " + std::to_string(header.size.width) + "x" +
                std::to_string(header.size.height) + " pixels");
  }
  header.num_components = segment.u8();
  if (header.num_components == 4) throw Error("unsupported: CMYK or YCCK");
  if (header.num_components != 1 && header.num_components != 3) {
    throw Error("unsupported: " + std::to_string(header.num_components) + " components");
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
    if (c.dc_table > 3 || c.ac_table > 3) throw Error("bad scan header");
    blocks += c.h * c.v;
  }
  if (count > 1 && blocks > 10) throw Error("bad sampling factors: more than 10 blocks an MCU");
  const int start = segment.u8(), end = segment.u8(), approximation = segment.u8();
  if (!header.progressive && (start != 0 || end != 63 || approximation != 0)) {
    throw Error("bad scan header: not the whole spectrum");
  }
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
    blocks += int64_t{header.components[i].h} * header.components[i].v * header.mcu_count();
  }
  if (blocks / 8 > static_cast<int64_t>(scan_bytes)) {
    throw Error("truncated: too few bytes for " + std::to_string(header.size.width) + "x" +
                std::to_string(header.size.height) + " pixels");
  }
}

bool is_standalone(int marker) {
  return marker == kTEM || (marker >= kRST0 && marker <= kSOI) || marker == kEOI;
}

}  // namespace

Header parse_header(Bytes jpeg) {
  Reader reader(jpeg, 0);
  if (jpeg.size < 4 || reader.u8() != 0xFF || reader.u8() != kSOI) throw Error("not a JPEG");
  Parser parser;
  for (;;) {
    if (reader.u8() != 0xFF) throw Error("corrupt header: a marker was expected");
    int marker = reader.u8();
    while (marker == 0xFF) marker = reader.u8();  // fill bytes
    if (marker == 0 || is_standalone(marker)) throw Error("corrupt header: a misplaced marker");
    const int length = reader.u16();
    if (length < 2) throw Error("corrupt header: a segment of negative length");
    const Bytes body{reader.take(length - 2), static_cast<size_t>(length - 2)};
    const Reader segment(body, 0);

    if (marker == kSOF0 || marker == kSOF1 || marker == kSOF2) {
      parser.header.progressive = marker == kSOF2;
      parser.header.frame_offset = body.data - jpeg.data;
      parser.frame(segment);
    } else if (marker == kDHT) {
      parser.huffman_tables(segment);
    } else if (marker == kDQT) {
      parser.quant_tables(segment);
    } else if (marker == kDRI) {
      parser.header.restart_interval = Reader(segment).u16();
    } else if (marker == kAPP0) {
      parser.seen_jfif |= body.size >= 5 && std::memcmp(body.data, "JFIF", 5) == 0;
    } else if (marker == kAPP14) {
      if (body.size >= 12 && std::memcmp(body.data, "Adobe", 5) == 0) {
        parser.adobe_transform = body.data[11];
      }
    } else if (marker == kSOS) {
      if (!parser.seen_frame) throw Error("corrupt header: a scan before its frame");
      parser.scan(segment);
      parser.color_model();
      parser.header.scan_offset = reader.position();
      require_plausible_size(parser.header, reader.left());
      return parser.header;
    } else if (marker >= kSOF0 && marker <= kSOF15 && marker != kJPG && marker != kDAC) {
      throw Error("unsupported: a lossless, hierarchical or arithmetic-coded JPEG");
    }
  }
}

void index_intervals(Bytes jpeg, const Header& header, std::vector<Bytes>& intervals) {
  intervals.clear();
  const uint8_t* begin = jpeg.data + header.scan_offset;
  const uint8_t* const end = jpeg.data + jpeg.size;
  const size_t expected =
      header.restart_interval ? ceil_div(header.mcu_count(), header.restart_interval) : 1;
  for (const uint8_t* p = begin;;) {
    p = static_cast<const uint8_t*>(std::memchr(p, 0xFF, end - p));
    if (p == nullptr || end - p < 2) throw Error("truncated: the scan has no end");
    const int marker = p[1];
    if (marker == 0) {  // a stuffed 0xFF
      p += 2;
      continue;
    }
    intervals.push_back({begin, static_cast<size_t>(p - begin)});
    while (p[1] == 0xFF) {  // fill bytes
      if (end - ++p < 2) throw Error("truncated: the scan has no end");
    }
    if (p[1] < kRST0 || p[1] > kRST7) break;
    if (p[1] - kRST0 != static_cast<int>((intervals.size() - 1) % 8)) {
      throw Error("corrupt scan: restart markers out of order");
    }
    if (intervals.size() >= expected) throw Error("corrupt scan: too many restart markers");
    begin = p += 2;
  }
  if (intervals.size() != expected) {
    throw Error("corrupt scan: " + std::to_string(intervals.size()) + " restart intervals where " +
                std::to_string(expected) + " were expected");
  }
}

}  // namespace fastselfie::jpeg
