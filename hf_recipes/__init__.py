"""Fine-tuning from one YAML file whose sections are the keyword arguments of the upstream classes they name."""

__version__ = "0.1.0"
