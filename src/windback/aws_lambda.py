"""The earlier place of `windback.serverless.flush_after`."""

from __future__ import annotations

from .serverless import flush_after

__all__ = ["flush_after"]
