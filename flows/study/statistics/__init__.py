"""Statistics of a study: means over seeds, paired differences, their intervals, and what they can see."""
