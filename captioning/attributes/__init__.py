"""Reading a caption's text: attributes by slot."""

from captioning.attributes.parse import parse_caption

__all__ = ["parse_caption"]
