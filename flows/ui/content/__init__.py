"""What the page shows, read from artifacts; independent of HTTP."""
