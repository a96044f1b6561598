"""Hard negatives mined by id from embeddings, with a reason for every rejection."""

from retrievers.search.mining.judge import KEPT, Mined, MiningConfig, Pool, Tally, mine
from retrievers.search.mining.negatives import mine_negatives
from retrievers.search.mining.plan import plan_mining
from retrievers.search.mining.tables import mine_plan

__all__ = [
    "KEPT",
    "Mined",
    "MiningConfig",
    "Pool",
    "Tally",
    "mine",
    "mine_negatives",
    "mine_plan",
    "plan_mining",
]
