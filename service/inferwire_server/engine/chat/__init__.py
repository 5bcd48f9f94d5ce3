"""Conversations as text: the model's own chat template."""
