"""Captioning engines: a LLaVA in this process, or a server. Both turn images into rows of the caption store."""
