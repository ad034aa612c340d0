"""Caption parsing: text in, attributes by slot out (`parse_caption`)."""

from captioning.attributes.parse import parse_caption

__all__ = ["parse_caption"]
