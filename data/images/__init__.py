"""Reading image files: pixels, orientation, thumbnails."""
