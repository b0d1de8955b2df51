"""Sockets to listen on, and who has the one that is taken."""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Iterator, NamedTuple, Optional

from .options import DEFAULT_PORT, MORE_PORTS, Options

#: The state of a listening socket in /proc/net/tcp.
_LISTENING = "0A"

#: What is on the command line of a local server: its command, its module, or the code that starts it.
_OF_SERVER = re.compile(r"windback\.devserver|(^|/)windback$")


class Taken(NamedTuple):
    """A socket, and the port that was wanted in its place but is somebody's."""

    listener: socket.socket
    wanted: Optional[int]


def listen(options: Options) -> Taken:
    """Listen according to *options*; raises `OSError` when that cannot be.

    Only who named no port gets another one when the first is taken.
    """
    if options.port is not None:
        return Taken(_listen(options.host, options.port), None)
    for port in range(DEFAULT_PORT, DEFAULT_PORT + MORE_PORTS):
        try:
            return Taken(_listen(options.host, port), None if port == DEFAULT_PORT else DEFAULT_PORT)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    return Taken(_listen(options.host, 0), DEFAULT_PORT)


def _listen(host: str, port: int) -> socket.socket:
    # The protocol is named: asyncio sets TCP_NODELAY only then, and without it each answer (head and body are
    # two writes) waits 40 ms for the client's delayed acknowledgement.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere the option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def authority(listener: socket.socket) -> str:
    """Host and port as a URL has them."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - it is what stands for every address
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def owner(port: int) -> Optional[str]:
    """Which program listens on *port*, such as ``python3 (pid 4711)``; None where one cannot see it."""
    inodes = set(_listening(port))
    if not inodes:
        return None
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # it has ended, or is somebody else's
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor) in inodes:
                    return f"{_name(process)} (pid {process.name})"
    return None


def _listening(port: int) -> Iterator[str]:
    """The sockets that listen on *port*, in the form of their descriptors' links."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"


def _name(process: Path) -> str:
    """What a process is called: its program, and for an interpreter what it runs."""
    words = (process / "cmdline").read_bytes().split(b"\0")
    program = Path(words[0].decode(errors="replace")).name
    arguments = [word.decode(errors="replace") for word in words[1:] if word]
    if any(_OF_SERVER.search(argument) for argument in arguments):
        return "another windback dev"
    return program or (process / "comm").read_text().strip()
