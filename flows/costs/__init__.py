"""What a run or a study will cost."""
