"""Public import path of the ranking metrics: `reid.metrics.evaluate_ranking`."""

from reid.ranking.metrics import Ranking, evaluate_ranking

__all__ = ["Ranking", "evaluate_ranking"]
