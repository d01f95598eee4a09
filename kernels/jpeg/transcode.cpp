// The lossless transcode: see transcode.hpp.
#include "transcode.hpp"

#include <algorithm>

#include "coefficients.hpp"
#include "scan_reader.hpp"
#include "scan_writer.hpp"

namespace fastselfie::jpeg {
namespace {

// 64 pixels: a crop then decodes 32 pixels too many at either side on average, and the markers cost
// less than the optimised tables save.
int default_restart_mcus(const Header& header) { return std::max(1, 64 / header.mcu_width()); }

int largest_divisor(int n, int at_most) {
  int divisor = std::min(n, at_most);
  while (n % divisor != 0) --divisor;
  return divisor;
}

void require_baseline_possible(const Header& header) {
  if (header.color == ColorModel::kRgb) throw Error("unsupported: an RGB JPEG");
  int blocks = 0;
  for (int i = 0; i < header.num_components; ++i) {
    const Component& c = header.components[i];
    const auto& steps = header.quant[c.quant_table];
    if (std::any_of(steps.begin(), steps.end(), [](int step) { return step > 255; })) {
      throw Error("unsupported: 16-bit quantisation steps are not baseline");
    }
    blocks += c.h * c.v;
  }
  // A file whose scans are of one component each may have more.
  if (blocks > 10) throw Error("bad sampling factors: more than 10 blocks an MCU");
}

// What Pillow and others tell the size on paper by.
Jfif jfif_of(const jpeg_decompress_struct& info) {
  const int x = info.X_density, y = info.Y_density;
  const std::array<int, 7> values = {
      info.JFIF_major_version, info.JFIF_minor_version, info.density_unit, x >> 8, x, y >> 8, y};
  Jfif jfif;
  std::copy(values.begin(), values.end(), jfif.begin());
  return jfif;
}

// Tables may also come behind the first scan. A component's is null where no scan has it.
void take_quant_tables(const jpeg_decompress_struct& info, Header& header) {
  for (int i = 0; i < header.num_components; ++i) {
    const int table = header.components[i].quant_table;
    const JQUANT_TBL* const used = info.comp_info[i].quant_table;
    const JQUANT_TBL* const last = info.quant_tbl_ptrs[table];
    if (last == nullptr) throw Error("corrupt header: a quantisation table is missing");
    if (used && !std::equal(used->quantval, used->quantval + 64, last->quantval)) {
      throw Error("a quantisation table changes between two scans");
    }
    for (int k = 0; k < 64; ++k) header.quant[table][k] = last->quantval[kNaturalOrder[k]];
  }
}

void add_block(const JCOEF* values, int component, Tokens& tokens) {
  tokens.add_dc(component, values[0]);
  int end = 1;  // behind the last value that is not zero
  for (int k = 1; k < 64; ++k) {
    if (const int value = values[kNaturalOrder[k]]) {
      tokens.add_ac(component, k - end, value);
      end = k + 1;
    }
  }
  if (end < 64) tokens.add_end_of_block(component);
}

void add_all_blocks(CoefficientReader& libjpeg, const Header& header, Tokens& tokens) {
  const BlockOrder order(header);
  std::array<JBLOCKARRAY, kMaxComponents> rows{};
  for (int mcu_y = 0; mcu_y < header.mcu_rows(); ++mcu_y) {
    for (int i = 0; i < header.num_components; ++i) {
      const int v = header.components[i].v;
      rows[i] = libjpeg.rows(i, mcu_y * v, v);
    }
    for (int mcu_x = 0; mcu_x < header.mcus_per_row(); ++mcu_x) {
      tokens.begin_mcu();
      order.visit(
          mcu_x, mcu_y,
          [&](int i, int x, int y) {
            add_block(rows[i][y - mcu_y * header.components[i].v][x], i, tokens);
          },
          [&](int i) { tokens.add_filler(i); });
    }
  }
}

}  // namespace

std::vector<uint8_t> transcode(Bytes jpeg, int restart_mcus) {
  Header header = parse_header(jpeg);
  if (restart_mcus == 0) restart_mcus = default_restart_mcus(header);
  if (restart_mcus < 1) throw Error("restart_mcus must be at least 1");
  require_baseline_possible(header);
  CoefficientReader libjpeg(jpeg, header);
  const Jfif jfif = jfif_of(libjpeg.info());
  const int interval = largest_divisor(header.mcus_per_row(), restart_mcus);
  if (header.is_baseline()) {
    try {
      Tokens tokens(interval, 2 * jpeg.size);
      read_scan(jpeg, header, tokens);
      return write_jpeg(header, jfif, tokens);
    } catch (const Error&) {
      // libjpeg has the last word: it forgives a little, and says what is wrong with the rest.
    }
  }
  libjpeg.read();
  take_quant_tables(libjpeg.info(), header);
  require_baseline_possible(header);
  Tokens tokens(interval, 2 * jpeg.size);
  add_all_blocks(libjpeg, header, tokens);
  return write_jpeg(header, jfif, tokens);
}

}  // namespace fastselfie::jpeg
