"""What docs/tutorial.md calls proj.py."""

from names import sync

__all__ = ["sync"]
