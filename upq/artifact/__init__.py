"""A packed model: what it is made of."""

from upq.artifact.format import Artifact

__all__ = ["Artifact"]
