"""AWS Lambda as a function meets it: the Runtime API on loopback, and a freeze between invocations."""

from __future__ import annotations

import http.server
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Dict, NamedTuple, Tuple

from servers import environment


class Answer(NamedTuple):
    """What the function answered; kind: "response" or "error"."""

    kind: str
    body: object


class LambdaRuntime:
    """Runs a handler in AWS's own runtime client. Between invocations its process is stopped."""

    def __init__(self, folder: Path, handler: str, url: str, **more: str) -> None:
        self.invocations: queue.Queue[Tuple[str, bytes, int]] = queue.Queue()
        self.answers: queue.Queue[Answer] = queue.Queue()
        self._count = 0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self._said = ""
        self._output = (folder / "lambda-output").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", handler],
            cwd=more.pop("cwd", folder),
            env=environment(
                url,
                AWS_LAMBDA_RUNTIME_API=f"127.0.0.1:{self._server.server_address[1]}",
                AWS_LAMBDA_FUNCTION_NAME="function",
                PYTHONDONTWRITEBYTECODE="1",
                **more,
            ),
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _make_handler(self) -> type:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                number, payload, deadline_ms = outer.invocations.get()
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", number)
                self.send_header("Lambda-Runtime-Deadline-Ms", str(deadline_ms))
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:x:1:function:f")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def do_POST(self) -> None:
                length = self.headers["content-length"]
                body = self.rfile.read(int(length)) if length else self._read_chunks()
                # Lambda freezes the process when it has the answer.
                outer.signal(signal.SIGSTOP)
                outer.answers.put(Answer(self.path.rsplit("/", 1)[-1], json.loads(body)))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _read_chunks(self) -> bytes:
                parts = []
                while True:
                    size = int(self.rfile.readline().split(b";")[0], 16)
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                    if not size:
                        return b"".join(parts)

            def log_message(self, *_) -> None:
                """Say nothing."""

        return Handler

    def invoke(self, payload: Dict[str, object], within_s: float = 60.0, frozen_s: float = 0.0) -> Answer:
        """Run one invocation, which Lambda would end after *within_s*; stay frozen for some time after it."""
        self._count += 1
        deadline_ms = int((time.time() + within_s) * 1000)
        self.invocations.put((f"request-{self._count}", json.dumps(payload).encode(), deadline_ms))
        self.signal(signal.SIGCONT)
        try:
            answer = self.answers.get(timeout=60)
        except queue.Empty:
            raise AssertionError(f"the function did not answer:\n{self.output()}") from None
        time.sleep(frozen_s)
        return answer

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def output(self) -> str:
        if not self._output.closed:
            self._output.seek(0)
            self._said = self._output.read().decode(errors="replace")
        return self._said

    def __enter__(self) -> LambdaRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()
        self.output()
        self._output.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
