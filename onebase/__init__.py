"""From supervised fine-tuning to preference alignment on one frozen base model, every role an adapter on it."""

__version__ = "0.1.0"
