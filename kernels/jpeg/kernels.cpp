// The choice of an instruction set at run time: see kernels.hpp.
#include "kernels.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>

namespace fastselfie::jpeg {
namespace {

std::vector<const Kernels*> supported() {  // best first
  std::vector<const Kernels*> sets;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    sets.push_back(&avx512::kKernels);
  }
  if (avx2) sets.push_back(&avx2::kKernels);
#elif defined(__aarch64__)
  sets.push_back(&neon::kKernels);
#endif
  sets.push_back(&generic::kKernels);
  return sets;
}

// Null if this processor has no such set.
const Kernels* find(const std::string& name) {
  const std::vector<const Kernels*> sets = supported();
  const auto found = std::find_if(sets.begin(), sets.end(),
                                  [&](const Kernels* set) { return name == set->name; });
  return found == sets.end() ? nullptr : *found;
}

const Kernels* choose_default() {
  static const char* const wanted = std::getenv("FASTSELFIE_KERNELS");
  if (wanted == nullptr) return supported().front();
  if (const Kernels* set = find(wanted)) return set;
  std::string names;
  for (const std::string& name : available_kernels()) names += (names.empty() ? "" : ", ") + name;
  throw Error("FASTSELFIE_KERNELS=" + std::string(wanted) +
              ": this processor has no such kernels: set it to one of " + names);
}

std::atomic<const Kernels*>& selected() {
  static std::atomic<const Kernels*> kernels{choose_default()};
  return kernels;
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

const Kernels& kernels() { return *selected().load(std::memory_order_relaxed); }

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* set : supported()) names.emplace_back(set->name);
  return names;
}

void select_kernels(const std::string& name) {
  const Kernels* const set = name == "auto" ? choose_default() : find(name);
  if (set == nullptr) throw Error("this processor has no kernels called '" + name + "'");
  selected().store(set);
}

}  // namespace fastselfie::jpeg
