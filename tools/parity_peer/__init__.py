"""Golden numbers of the public CLIP-ReID code."""
