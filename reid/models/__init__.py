"""CLIP backbones and the modules on top of them: CGI, CFF, prompts, heads."""
