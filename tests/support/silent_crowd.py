"""A program, `python silent_crowd.py PORT COUNT`: opens so many connections to a port of this machine and says nothing.

It says "there" on its standard output when it has, and ends with its standard input.
"""

from __future__ import annotations

import socket
import sys


def main() -> None:
    port, count = map(int, sys.argv[1:])
    crowd = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        crowd.append(sock)
    print("there", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
