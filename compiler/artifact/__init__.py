"""What a compilation gives, kept on disk: written whole or not at all, read back, verified."""

from tersor.artifact.artifact import Artifact, check_path, load
from tersor.artifact.intact import Verified, verify

__all__ = ["Artifact", "Verified", "check_path", "load", "verify"]
