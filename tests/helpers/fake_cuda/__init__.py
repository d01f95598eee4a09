"""A GPU that computes nothing: steps on fake CUDA tensors, which have shapes and no values.

`device.py` makes torch believe in the GPU, `waits.py` finds what waits for it, `cases.py` has the
steps to run, and `python -m helpers.fake_cuda` runs them. `hooks.cpp` is compiled by the tests.
"""
