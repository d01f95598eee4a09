// The choice of an instruction set at run time: see host.hpp.
#include "../instruction_set.hpp"
#include "host.hpp"

namespace fastselfie::host {

namespace generic {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels kKernels;
}
#endif

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

const Kernels& kernels() { return dispatcher().selected(); }

std::vector<std::string> available_kernels() { return dispatcher().available(); }

void select_kernels(const std::string& name) { dispatcher().select(name); }

}  // namespace fastselfie::host
