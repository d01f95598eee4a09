// The choice of an instruction set at run time: see kernels.hpp.
#include "kernels.hpp"

#include <atomic>

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
#endif
  sets.push_back(&generic::kKernels);
  return sets;
}

std::atomic<const Kernels*>& selected() {
  static std::atomic<const Kernels*> kernels{supported().front()};
  return kernels;
}

}  // namespace

const Kernels& kernels() { return *selected().load(std::memory_order_relaxed); }

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* set : supported()) names.emplace_back(set->name);
  return names;
}

void select_kernels(const std::string& name) {
  for (const Kernels* set : supported()) {
    if (name == "auto" || name == set->name) {
      selected().store(set);
      return;
    }
  }
  throw Error("this processor has no kernels called '" + name + "'");
}

}  // namespace fastselfie::jpeg
