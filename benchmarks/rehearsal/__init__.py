"""The parts of `make rehearsal`: the published recipes at their true shapes, for a few steps (run_rehearsal.py)."""
