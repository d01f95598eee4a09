// The choice of an instruction set at run time, the same in both extension modules.
//
// A module compiles its loops once per set, each in a namespace and a kernels_*.cpp of the set's
// name, and puts the functions into a table. Every set gives the same bytes.
#pragma once

#include <atomic>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastselfie {

// Whether this processor can run the code of a set. On x86-64 this checks for every extension that
// a kernels_*.cpp names as its target.
inline bool processor_has([[maybe_unused]] const std::string& set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  if (set == "avx2") return avx2;
  if (set == "avx512") {
    return avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
  }
#endif
  return true;  // generic, and neon, which every aarch64 processor has
}

// Selects one of a module's tables. Kernels is the type of a table and has the set's `name`.
template <typename Kernels>
class Dispatcher {
 public:
  // Selects the set that FASTSELFIE_KERNELS names, else the best that this processor has.
  // `compiled` is best first. Throws std::invalid_argument if this processor has no set of that
  // name.
  explicit Dispatcher(std::initializer_list<const Kernels*> compiled) {
    for (const Kernels* set : compiled) {
      if (processor_has(set->name)) supported_.push_back(set);
    }
    const char* const wanted = std::getenv("FASTSELFIE_KERNELS");
    default_ = wanted ? find(wanted, "FASTSELFIE_KERNELS=" + std::string(wanted))
                      : supported_.front();
    selected_ = default_;
  }

  const Kernels& selected() const { return *selected_.load(std::memory_order_relaxed); }

  std::vector<std::string> available() const {  // best first
    std::vector<std::string> names;
    for (const Kernels* set : supported_) names.emplace_back(set->name);
    return names;
  }

  // Selects one of available(), or with "auto" what the constructor selected. Throws
  // std::invalid_argument for another name.
  void select(const std::string& name) {
    selected_ = name == "auto" ? default_ : find(name, "select_kernels('" + name + "')");
  }

 private:
  const Kernels* find(const std::string& name, const std::string& asked) const {
    std::string names;
    for (const Kernels* set : supported_) {
      if (name == set->name) return set;
      names += (names.empty() ? "" : ", ") + std::string(set->name);
    }
    throw std::invalid_argument(
        asked + ": this processor has no such kernels: set it to one of " + names);
  }

  std::vector<const Kernels*> supported_;  // best first
  const Kernels* default_;
  std::atomic<const Kernels*> selected_;
};

}  // namespace fastselfie
