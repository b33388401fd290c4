"""A worker that does what a request says, to see what that costs."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from onebase.verifiers.workers import serve


def obey(request: dict[str, Any]) -> dict[str, Any]:
    kind = request["kind"]
    if kind == "hang":
        time.sleep(600)
    elif kind == "spin":
        return {"never": 9**9**9}
    elif kind == "crash":
        os.abort()
    elif kind == "exit":
        os._exit(3)
    elif kind == "raise":
        raise ValueError("no such thing")
    elif kind == "fork":
        if os.fork() == 0:
            time.sleep(600)
    elif kind == "fork and hang":
        os.fork()
        time.sleep(600)
    elif kind == "memory":
        kept = [bytearray(1 << 24) for _ in range(1000)]
        return {"size": len(kept)}
    elif kind == "print":
        while True:
            print("x" * 10_000)
            print("x" * 10_000, file=sys.stderr)
    elif kind == "long":
        return {"text": "x" * (2 << 20)}
    elif kind == "junk":
        os.write(int(sys.argv[2]), b"junk\n")
    elif kind == "close":
        os.close(int(sys.argv[2]))
        time.sleep(600)
    elif kind == "stdin":
        return {"read": len(os.read(0, 10))}
    return {"pid": os.getpid(), "torch": "torch" in sys.modules, "echo": request.get("echo")}


if __name__ == "__main__":
    serve(obey)
