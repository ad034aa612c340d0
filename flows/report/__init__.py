"""The report stage: one page about a run, with its scores, charts, queries and captions."""
