"""The inferwire server: a gRPC service for local and remote language models."""

__version__ = "0.1.0"
