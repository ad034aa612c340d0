"""The addresses of the page, one module per page."""
