"""Results of a study: tables as text, charts, and the page."""
