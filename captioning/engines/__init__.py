"""Captioning engines: a LLaVA in this process, or a server; both turn images into replies."""
