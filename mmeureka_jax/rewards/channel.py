"""What the training process and a reward worker say to each other, over a socket that keeps messages apart.

A rule of the user's own runs in the worker and may write to any descriptor that it finds. Its bytes are then a message
of their own: they cannot be mistaken for a part of a reply, and nobody waits for the rest of them. A job is a head with
its number and size, followed by its text in packets; a reply is one packet, and carries the number of its job.
"""

from __future__ import annotations

import json
import socket
from typing import Any

PACKET = 1 << 16  # bytes; more do not fit where the system's buffers are small
SEND_LIMIT = 10.0  # seconds for a worker that waits for a job to take it
CHANNEL_LOST = 74  # exit code of a worker that cannot reply
READY = -1  # what a worker says first, as a reply to the job of this number


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_job(channel: socket.socket, number: int, job: bytes) -> None:
    """Sends a job with its number.

    Raises:
        OSError: the other side does not take it.
    """
    channel.settimeout(SEND_LIMIT)
    channel.send(json.dumps({"job": number, "bytes": len(job)}).encode())
    for start in range(0, len(job), PACKET):
        channel.send(job[start : start + PACKET])


def receive_job(channel: socket.socket) -> tuple[int, dict[str, Any]] | None:
    """The number and the job; None once the other side has closed."""
    head = channel.recv(PACKET)
    if not head:
        return None
    size = json.loads(head)["bytes"]
    job = bytearray()
    while len(job) < size:
        packet = channel.recv(PACKET)
        if not packet:
            return None
        job += packet
    return json.loads(head)["job"], json.loads(job)


def send_reply(channel: socket.socket, number: int, reply: dict[str, Any]) -> None:
    channel.send(json.dumps({"job": number} | reply).encode())


def receive_reply(channel: socket.socket, number: int) -> dict[str, Any] | None:
    """The reply to a job; None for a message that is not a reply.

    Raises:
        EOFError: the worker closed its side, or is gone.
    """
    message = channel.recv(PACKET)
    if not message:
        raise EOFError
    try:
        reply = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return reply if isinstance(reply, dict) and reply.pop("job", None) == number else None


def is_silent(channel: socket.socket) -> bool:
    """Whether the other side is there and has said nothing, as while it waits for a job."""
    channel.setblocking(False)
    try:
        channel.recv(PACKET)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
