"""Benchmarks. Each is a command of its own; figures go to bench/results."""
