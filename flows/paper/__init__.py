"""Tables and figures of the CLIP-SCGI paper, made from runs and captions of this project."""
