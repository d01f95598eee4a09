"""What the benchmarks share; no script of its own."""
