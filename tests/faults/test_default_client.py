"""get_client: one client in a process, whichever thread comes first, and one of its own after a fork."""

from __future__ import annotations

from tracking import numbers


def test_a_hundred_threads_make_one_client(server, run):
    code = """\
    import sys, threading
    import windback
    from windback.process import lifecycle

    sys.setswitchinterval(1e-6)
    barrier, clients = threading.Barrier(100), []

    def work(n):
        barrier.wait()
        client = windback.get_client()
        clients.append(client)
        client.track_event("login", "jane@example.com", {"n": n})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clients[0].flush(30)
    print(len(set(clients)), len(lifecycle.engines()))
    """
    ended = run(code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["1 1"], "")
    assert numbers(server) == list(range(100))


def test_a_fork_gets_an_empty_client_of_its_own(server, run):
    code = """\
    import os, sys
    import windback

    windback.get_client().track_event("login", "jane@example.com", {"n": 0})
    for n in (1, 2):
        if not os.fork():
            client = windback.get_client()
            assert client.stats().accepted == 0
            client.track_event("login", "jane@example.com", {"n": n})
            client.flush(30)
            sys.exit()
    assert windback.get_client().flush(30)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    """
    ended = run(code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == [0, 1, 2]
