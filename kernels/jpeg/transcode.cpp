// The lossless transcode: see transcode.hpp.
#include "transcode.hpp"

#include <algorithm>
#include <numeric>

#include "coefficients.hpp"
#include "huffman.hpp"
#include "scan_reader.hpp"
#include "scan_writer.hpp"

namespace fastselfie::jpeg {
namespace {

// 64 pixels: a crop then decodes 32 pixels too many at either side on average, and the markers cost
// less than the optimised tables save.
int default_restart_mcus(const Header& header) { return std::max(1, 64 / header.mcu_width()); }

// The largest number of MCUs up to `at_most` that divides a row.
int restart_interval(const Header& header, int at_most) {
  const int row = header.mcus_per_row();
  int divisor = std::min(row, at_most);
  while (row % divisor != 0) --divisor;
  return divisor;
}

void require_baseline_possible(const Header& header) {
  if (header.color == ColorModel::kRgb) throw Unsupported("an RGB JPEG");
  int blocks = 0;
  for (int i = 0; i < header.num_components; ++i) {
    const Component& c = header.components[i];
    const auto& steps = header.quant[c.quant_table];
    const auto is_bad = [](int step) { return step < 1 || step > 255; };
    if (header.quant_defined[c.quant_table] && std::any_of(steps.begin(), steps.end(), is_bad)) {
      throw Unsupported("quantisation steps that are not of 1 to 255");
    }
    blocks += c.h * c.v;
  }
  // A file whose scans are of one component each may have more.
  if (blocks > 10) throw Unsupported("more than 10 blocks an MCU");
}

// libjpeg also reads symbols that baseline JPEG does not have.
bool has_foreign_symbols(const Header& header) {
  const auto is_foreign = [](const HuffmanSpec& spec, bool ac) {
    const int count = std::accumulate(spec.counts.begin(), spec.counts.end(), 0);
    const auto end = spec.symbols.begin() + count;
    return std::any_of(spec.symbols.begin(), end, [&](int s) { return symbol_advance(s, ac) < 0; });
  };
  const auto* const begin = header.components.begin();
  return std::any_of(begin, begin + header.num_components, [&](const Component& c) {
    return is_foreign(header.dc_specs[c.dc_table], false) ||
           is_foreign(header.ac_specs[c.ac_table], true);
  });
}

// What decides no pixel and may be wrong in the source.
void mend_labels(Header& header) {
  auto& jfif = header.jfif;
  if (jfif[0] != 1) jfif[0] = jfif[1] = 1;
  const bool no_density = (jfif[3] | jfif[4]) == 0 || (jfif[5] | jfif[6]) == 0;
  if (jfif[2] > 2 || no_density) std::copy_n(Header().jfif.begin() + 2, 5, jfif.begin() + 2);
  auto& c = header.components;
  if (header.num_components == 3 &&
      (c[0].id == c[1].id || c[0].id == c[2].id || c[1].id == c[2].id)) {
    for (int i = 0; i < 3; ++i) c[i].id = static_cast<uint8_t>(i + 1);
  }
}

// Tables may also come behind the first scan. A component's is null where no scan has it.
void take_quant_tables(const jpeg_decompress_struct& info, Header& header) {
  for (int i = 0; i < header.num_components; ++i) {
    const int table = header.components[i].quant_table;
    const JQUANT_TBL* const used = info.comp_info[i].quant_table;
    const JQUANT_TBL* const last = info.quant_tbl_ptrs[table];
    if (last == nullptr) throw Error("corrupt header: a quantisation table is missing");
    if (used && !std::equal(used->quantval, used->quantval + 64, last->quantval)) {
      throw Unsupported("a quantisation table changes between two scans");
    }
    header.quant_defined[table] = true;
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

// Reads the whole file to its end. `header` gets the tables that follow its first scan.
Tokens read_tokens(Bytes jpeg, Header& header, int restart_mcus) {
  require_baseline_possible(header);
  const int interval = restart_interval(header, restart_mcus);
  Tokens tokens(interval, 2 * jpeg.size);
  if (header.is_baseline()) {
    try {
      read_scan(jpeg, header, tokens);
      return tokens;
    } catch (const Error&) {
      if (!has_foreign_symbols(header)) throw;
    }
  }
  CoefficientReader libjpeg(jpeg);
  libjpeg.read();
  libjpeg.require_same_blocks(header);
  take_quant_tables(libjpeg.info(), header);
  require_baseline_possible(header);
  Tokens found(interval, 2 * jpeg.size);
  add_all_blocks(libjpeg, header, found);
  return found;
}

}  // namespace

std::vector<uint8_t> transcode(Bytes jpeg, int restart_mcus) {
  Header header = parse_header(jpeg);
  if (restart_mcus == 0) restart_mcus = default_restart_mcus(header);
  if (restart_mcus < 1) throw Error("restart_mcus must be at least 1");
  const Tokens tokens = read_tokens(jpeg, header, restart_mcus);
  mend_labels(header);
  return write_jpeg(header, tokens);
}

void check(Bytes jpeg) {
  try {
    Header header = parse_header(jpeg);
    read_tokens(jpeg, header, default_restart_mcus(header));
  } catch (const Unsupported&) {
    try {
      CoefficientReader(jpeg).read();
    } catch (const LostPixels&) {
      throw;
    } catch (const Error&) {  // of a kind that this libjpeg does not read, but Pillow's may
    }
  }
}

}  // namespace fastselfie::jpeg
