"""Exact ranking: similarity, mAP, CMC and mINP, and k-reciprocal re-ranking."""
