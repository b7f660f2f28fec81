"""Lowering of a graph to the integers that Loihi and Lava's fixed_pt models compute with."""

from stars_deploy.targets.loihi.balance import Balance, balance_named
from stars_deploy.targets.loihi.document import LoweredNetwork
from stars_deploy.targets.loihi.lower import Analysis, analyse, graph_findings, lower

__all__ = [
    "Analysis",
    "Balance",
    "LoweredNetwork",
    "analyse",
    "balance_named",
    "graph_findings",
    "lower",
]
