"""CLIP backbones and the modules on top: CGI, CFF, prompts, heads."""
