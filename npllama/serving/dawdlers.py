"""Clients that connect and never say what they want.

A server has a limit of connections.  One that waits for the head of a request (its
method, path and headers) as long as the client likes can be kept full by clients that
send nothing, or half a head.  uvicorn limits the wait between two requests only, and
until the first byte.  So a head has to be complete within `PATIENCE` seconds; the body
of a request has a limit of its own (`clients.body_of`).
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 20.0  # seconds for the head of a request to arrive


class Patient(H11Protocol):
    """A connection that is closed if the head of a request is late."""

    due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect(True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect(self.conn.their_state is h11.IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(False)
        super().connection_lost(exc)

    def _expect(self, head: bool) -> None:
        """Wait for a head from now on, or still, or no longer."""
        if head and self.due is None:
            self.due = self.loop.call_later(PATIENCE, self.transport.close)
        elif not head and self.due is not None:
            self.due.cancel()
            self.due = None
