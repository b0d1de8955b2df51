"""What is raised into a plain call from outside reaches its caller, and not as a failure of the network."""

from __future__ import annotations

import pytest

TOOLS = """\
import asyncio, ctypes, functools, os, signal, sys, threading, time
from windback import AsyncWindback, Windback, WindbackConnectionError, WindbackError

class SoftTimeLimitExceeded(Exception):
    "As Celery's, which a signal handler raises in the main thread."

def soon():
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()

client = Windback(timeout=20, max_retries=2)
import httpx
own = Windback(timeout=20, http_client=httpx.Client())

def load():
    # Python itself swallows an OSError that comes while it looks for a module.
    for each in (client, own):
        try:
            each.with_options(timeout=0.2, max_retries=0).get_recovery_stats()
        except WindbackError:
            pass
    try:
        asyncio.run(AsyncWindback(timeout=0.2, max_retries=0).get_recovery_stats())
    except WindbackError:
        pass

"""
HANDLERS = {
    "function": """
def handler(*_):
    raise SoftTimeLimitExceeded
signal.signal(signal.SIGUSR1, handler)
""",
    "method": """
class Limits:
    def handle(self, *_):
        raise SoftTimeLimitExceeded
signal.signal(signal.SIGUSR1, Limits().handle)
""",
    "callable object": """
class Limit:
    def __call__(self, *_):
        raise SoftTimeLimitExceeded
signal.signal(signal.SIGUSR1, Limit())
""",
    "partial": """
def handler(error, *_):
    raise error
signal.signal(signal.SIGUSR1, functools.partial(handler, SoftTimeLimitExceeded()))
""",
    "built-in exception": """
SoftTimeLimitExceeded = TimeoutError  # what the usual recipe with SIGALRM raises; the network has it, too
def handler(*_):
    raise TimeoutError("time is up")
signal.signal(signal.SIGUSR1, handler)
""",
    "of handle_signals": """
def handler(*_):
    raise SoftTimeLimitExceeded
signal.signal(signal.SIGTERM, handler)
signaller = Windback(handle_signals=True)
soon = lambda: threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
""",
}
CALLS = {
    "a call": "client.create_churn_event(customer_email='jane@example.com')",
    "track_events": "client.track_events([{'event': 'login', 'customer_email': 'jane@example.com'}])",
    "a client of the user's": ("own.get_recovery_stats()"),
    "async": "asyncio.run(AsyncWindback(timeout=20).get_recovery_stats())",
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_a_signal_handler_raises_reaches_the_caller(silent_url, run, handler, call):
    code = f"""
load()
soon()
try:
    {call}
except SoftTimeLimitExceeded as error:
    print("interrupted", isinstance(error, WindbackError))
os._exit(0)
"""
    ended = run(TOOLS + handler + code, url=silent_url, within_s=15)
    assert (ended.status, ended.out) == (0, ["interrupted False"]), ended.err


def test_what_another_thread_puts_into_this_one_reaches_the_caller(dripping_url, run):
    """As the time limits of task queues do that work without signals."""
    code = """
class JobTimeout(Exception):
    pass

main = threading.get_ident()
put = ctypes.pythonapi.PyThreadState_SetAsyncExc
threading.Timer(0.5, lambda: put(ctypes.c_ulong(main), ctypes.py_object(JobTimeout))).start()
try:
    client.get_recovery_stats()
except JobTimeout:
    print("interrupted")
os._exit(0)
"""
    ended = run(TOOLS + code, url=dripping_url, within_s=15)
    assert (ended.status, ended.out) == (0, ["interrupted"]), ended.err


def test_the_client_works_on_after_an_interrupted_call(server, run):
    server.faults([{"latency": 20, "times": 1}])
    code = f"""{HANDLERS["function"]}
soon()
try:
    client.get_recovery_stats()
except SoftTimeLimitExceeded:
    print("interrupted")
print(client.get_recovery_stats() is not None)
client.track_event("login", "jane@example.com", {{"n": 1}})
print(bool(client.close(20)))
"""
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.out) == (0, ["interrupted", "True", "True"]), ended.err
    assert server.counts().events == 1


FAILURES = {
    "a transport of the user's": """
import httpx
class OwnError(Exception):
    pass
class Transport(httpx.BaseTransport):
    def handle_request(self, request):
        raise OwnError("the tunnel is down")
client = Windback(max_retries=0, http_client=httpx.Client(transport=Transport()))
""",
    "a socket that another library replaced": """
import socket
class Blocked(RuntimeError):
    pass
def connect(*_, **__):
    raise Blocked("no sockets in unit tests")
socket.create_connection = socket.socket.connect = connect
client = Windback(max_retries=0)
""",
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_what_the_request_itself_raises_is_a_failure_of_the_connection(dead_url, run, failure):
    code = f"""{HANDLERS["function"]}{failure}
try:
    client.get_recovery_stats()
except WindbackConnectionError as error:
    print(str(error))
"""
    ended = run(TOOLS + code, url=dead_url)
    assert ended.status == 0, ended.err
    assert len(ended.out) == 1


def test_a_call_made_while_an_interruption_is_handled_fails_as_any_other(dead_url, run):
    code = f"""{HANDLERS["function"]}
client = Windback(max_retries=0)
try:
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(20)
except SoftTimeLimitExceeded:
    try:
        client.get_recovery_stats()
    except WindbackConnectionError:
        print("no connection")
"""
    ended = run(TOOLS + code, url=dead_url)
    assert (ended.status, ended.out) == (0, ["no connection"]), ended.err


@pytest.mark.parametrize("call", ["a call", "track_events"])
def test_a_timer_that_fires_all_the_time_does_not_postpone_the_timeout(silent_url, run, call):
    """As that of a profiler. Each signal ends a wait of the kernel, and Python begins it anew."""
    code = f"""
load()
client = Windback(timeout=2, max_retries=0)
fired = 0
def fire(*_):
    global fired
    fired += 1
signal.signal(signal.SIGALRM, fire)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
try:
    {CALLS[call]}
except WindbackError as error:
    print(type(error).__name__, fired > 10)
os._exit(0)
"""
    ended = run(TOOLS + code, url=silent_url, within_s=30)
    assert (ended.status, ended.out) == (0, ["WindbackTimeoutError True"]), ended.err
