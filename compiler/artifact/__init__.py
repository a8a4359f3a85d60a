"""Compiled models on disk: saved atomically, loaded, verified."""

from tersor.artifact.artifact import Artifact, check_path, load
from tersor.artifact.intact import Verified, verify

__all__ = ["Artifact", "Verified", "check_path", "load", "verify"]
