"""stars-deploy: data-free ANN-to-SNN distillation with a lowering proved spike for spike."""

__version__ = "0.1.0"
