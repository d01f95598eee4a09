// All loops, and what a table has of them. Included in the namespace of an instruction set.
#include "norm_relu.inl"
#include "patchify.inl"

template <typename Number>
constexpr Loops<Number> kLoops{patchify<Number>, norm_relu_forward<Number>,
                               norm_relu_backward<Number>};
