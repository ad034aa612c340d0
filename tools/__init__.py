"""Not installed: training of the two embedded models, and makers of golden files."""
