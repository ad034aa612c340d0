"""Text to image: how well the sentences about people find their images, as part of an evaluation."""
