"""Benchmarks: peers in pairs, in one process, as ratios. Run `python -m benchmarks`."""
