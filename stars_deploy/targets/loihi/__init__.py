"""Lowering of a graph to the integers that Loihi and Lava's fixed_pt models compute with."""

from stars_deploy.targets.loihi.document import LoweredNetwork
from stars_deploy.targets.loihi.lower import Analysis, analyse, graph_findings, lower

__all__ = ["Analysis", "LoweredNetwork", "analyse", "graph_findings", "lower"]
