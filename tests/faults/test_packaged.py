"""Programs that are frozen into one file, and windback in an archive."""

from __future__ import annotations

import shutil
from pathlib import Path

from tracking import numbers

import windback


def test_a_frozen_program_never_starts_a_copy_of_itself(server, run):
    """As PyInstaller does: sys.frozen, and sys.executable is the program."""
    code = """\
    import os, subprocess, sys

    started = []
    Popen = subprocess.Popen

    class Watched(Popen):
        def __init__(self, command, *arguments, **options):
            started.append(list(command))
            super().__init__(command, *arguments, **options)

    subprocess.Popen = Watched
    sys.frozen = True
    from windback import Windback
    from windback.devserver import DevServer, DevServerError

    client = Windback(worker="process")
    for n in range(20):
        assert client.track_event("login", "jane@example.com", {"n": n})
    print(bool(client.close(20)))
    try:
        DevServer().start()
    except DevServerError as error:
        print("frozen" in str(error), "windback dev" in str(error))
    from windback.cli import main
    print(main(["dev", "--", "true"]))
    print([each for each in started if sys.executable in each])
    """
    ended = run(code, url=server.url)
    assert (ended.status, ended.out) == (0, ["True", "True True", "1", "[]"])
    assert "can't start a sender process (this program is frozen" in ended.err
    assert "windback dev: this program is frozen" in ended.err
    assert numbers(server) == list(range(20))


def test_from_an_archive_the_client_works_and_the_server_reports_what_it_needs(server, run, tmp_path):
    package = Path(windback.__file__).parent
    staged = tmp_path / "staged" / "windback"
    shutil.copytree(package, staged, ignore=shutil.ignore_patterns("__pycache__"))
    archive = shutil.make_archive(str(tmp_path / "windback"), "zip", tmp_path / "staged")
    code = f"""\
    import sys
    sys.path.insert(0, {archive!r})
    import windback
    from windback.devserver import DevServer, DevServerError
    assert windback.__file__.startswith({archive!r}), windback.__file__

    client = windback.Windback()
    assert client.track_event("login", "jane@example.com", {{"n": 0}})
    print(bool(client.close(20)))
    try:
        with DevServer():
            pass
    except DevServerError as error:
        print("archive" in str(error), "pip install 'windback[dev-server]'" in str(error))
    """
    ended = run(code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["True", "True True"], "")
    assert numbers(server) == [0]
