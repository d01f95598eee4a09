"""Modules that the scripts of benchmarks/ share. None is run by a person."""
