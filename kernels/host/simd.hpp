// Compiles a function for several instruction sets; the dynamic loader selects the best.
#pragma once

// No version fuses multiply and add (-ffp-contract=off in setup.py) or reorders additions, so all
// give the same bits.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define FASTSELFIE_SIMD \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTSELFIE_SIMD
#endif
