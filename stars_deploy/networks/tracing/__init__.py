"""Any module as a network of ours: torch.fx draws its graph, which becomes junctions and wires."""
