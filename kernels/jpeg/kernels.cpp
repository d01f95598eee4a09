// The choice of an instruction set, and of the intervals to decode: see kernels.hpp.
#include "kernels.hpp"

#include <algorithm>

#include "../instruction_set.hpp"

namespace fastselfie::jpeg {
namespace {

Dispatcher<Kernels>& dispatcher() {
  static Dispatcher<Kernels> dispatcher{
#if defined(__x86_64__)
      &avx512::kKernels, &avx2::kKernels,
#elif defined(__aarch64__)
      &neon::kKernels,
#endif
      &generic::kKernels};
  return dispatcher;
}

}  // namespace

IntervalSource::IntervalSource(const Header& header, const Plan& plan,
                               const std::vector<Bytes>& intervals, bool checked,
                               std::array<std::vector<uint8_t>, kLanes>& unstuffed)
    : intervals_(intervals),
      unstuffed_(unstuffed),
      checked_(checked),
      per_row_(header.mcus_per_row()),
      count_(header.mcu_count()),
      length_(header.restart_interval ? header.restart_interval : count_),
      xs_(plan.mcus_x),
      ys_(plan.mcus_y),
      next_((ys_.begin * per_row_ + xs_.begin) / length_) {}

bool IntervalSource::next(int lane, Interval& interval) {
  const int last = ((ys_.end - 1) * per_row_ + xs_.end - 1) / length_;
  for (; next_ <= last; ++next_) {
    const int begin = next_ * length_, end = std::min(begin + length_, count_);
    const int first_row = begin / per_row_, last_row = std::min((end - 1) / per_row_, ys_.end - 1);
    // Within one row of MCUs an interval may lie beside the box.
    const bool one_row = first_row == (end - 1) / per_row_;
    if (one_row && (end - first_row * per_row_ <= xs_.begin ||
                    begin - first_row * per_row_ >= xs_.end)) {
      continue;
    }
    const int stop = std::min(end, last_row * per_row_ + xs_.end);  // nothing is wanted behind it
    interval.size = unstuff(intervals_[next_++], unstuffed_[lane]);
    interval.bytes = unstuffed_[lane].data();
    interval.mcus = {begin, stop};
    // What is left over behind the blocks of a file that was checked is no sign of damage.
    interval.whole = stop == end && !checked_;
    return true;
  }
  return false;
}

const Kernels& kernels() { return dispatcher().selected(); }

std::vector<std::string> available_kernels() { return dispatcher().available(); }

void select_kernels(const std::string& name) { dispatcher().select(name); }

}  // namespace fastselfie::jpeg
