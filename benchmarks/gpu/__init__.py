"""The parts of `make gpu`: what only a GPU can show, and the same on a CPU in tiny shapes (benchmarks/run_gpu.py)."""
