"""Whatever this package starts, no file that lies in the caller's directories runs in it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from commands import SOURCE
from tracking import numbers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

#: Modules of the standard library, of this package, of what it needs, and of what that uses if it is found.
NAMES = (
    *("json", "os", "select", "signal", "string", "socket", "ssl", "sqlite3", "argparse", "token", "random"),
    *(
        "sitecustomize",
        "usercustomize",
        "windback",
        "orjson",
        "httpx",
        "httpcore",
        "h11",
        "anyio",
        "tenacity",
    ),
    *("redis", "exceptiongroup", "rich", "click", "h2", "socksio", "zstandard", "brotli", "brotlicffi"),
    *("sniffio", "starlette", "uvicorn", "httptools", "uvloop", "websockets", "wsproto", "trio", "typer"),
)


@pytest.fixture
def foreign(tmp_path):
    """A folder with files of these names, each of which leaves a note when it runs; and the notes."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    ran = tmp_path / "ran"
    for name in NAMES:
        text = f"open({str(ran)!r}, 'a').write({name!r} + ' ')\n"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        (folder / f"{name}-9.0.dist-info").mkdir()  # as if it were installed there
    (folder / "x.pth").write_text(f"import os; open({str(ran)!r}, 'a').write('pth ')\n", encoding="utf-8")
    return folder, lambda: ran.read_text(encoding="utf-8") if ran.exists() else ""


#: What the application itself loads, it loads from elsewhere; then its path is what it was at its start.
APPLICATION = f"""
import sys
at_the_start = sys.path[:]
sys.path[:] = [{str(SOURCE)!r}] + [each for each in sys.path if "foreign" not in each and each]
import windback, windback.client, windback.sender.supervisor, orjson, subprocess
sys.path[:] = at_the_start + [{str(SOURCE)!r}]
"""
SENDS = """
import os
client = windback.Windback("sk_test_1", base_url=os.environ["URL"], worker="process")
client.track_event("login", "jane@example.com", {"n": 1})
assert client.flush(40), client.stats()
assert client._engine._link._running.process is not None
assert client.stats().worker_deaths == 0
client.close(20)
"""


def run(command, folder, url="", *, is_quiet=True, **environment):
    """Run it in *folder*, with no variable of Python's but these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**inherited, "URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "" or not is_quiet
    return done.stdout


def start_from(how, folder, program):
    """Write *program* down; return the command that starts it so, and the directory to start it in."""
    if how == "-c":
        return ["-S", "-c", f"import sys; sys.path += {sys.path!r}\n{program}"], folder
    if how == "archive":
        with zipfile.ZipFile(folder.parent / "foreign.pyz", "w") as archive:
            archive.writestr("__main__.py", program)
            for name in NAMES:
                archive.write(folder / f"{name}.py", f"{name}.py")
        return [folder.parent / "foreign.pyz"], folder
    command, name = {
        "-m module": (["-m", "app"], "app.py"),
        "-m package": (["-m", "app"], "app/__main__.py"),
        "script": ([folder / "app.py"], "app.py"),
        "folder": ([folder], "__main__.py"),
    }[how]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(program, encoding="utf-8")
    return command, folder if command[0] == "-m" else folder.parent


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["-c", "-m module", "-m package", "script", "folder", "archive"])
def test_a_sender_runs_none_of_them(server, foreign, how):
    folder, ran = foreign
    command, place = start_from(how, folder, APPLICATION + SENDS)
    # These run in the application itself, before its first line.
    for name in ("os", "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").unlink()
    run([sys.executable, *command], place, server.url)
    assert numbers(server) == [1]
    assert ran() == ""


@pytest.mark.timeout(120)
def test_a_sender_runs_none_of_them_from_pythonpath(server, foreign, tmp_path):
    folder, ran = foreign
    (tmp_path / "app.py").write_text(APPLICATION + SENDS, encoding="utf-8")
    for name in ("os", "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").unlink()
    for entry in folder.glob("*.dist-info"):  # packages that are installed there are meant to be used
        entry.rmdir()
    run([sys.executable, tmp_path / "app.py"], tmp_path, server.url, PYTHONPATH=str(folder))
    assert numbers(server) == [1]
    assert ran() == ""


#: What `-I` stands for, and what only prints.
LEFT_OUT = ["-I", "-E -s", "-P", "-d", "-q", "-u", "-X importtime", "-X showrefcount", "-X tracemalloc=5"]
FLAGS = [
    *(*LEFT_OUT[:2], *LEFT_OUT[3:], "-O -B", "-OO", "-b", "-W error", "-X dev", "-X utf8", "-X faulthandler"),
    *("-X pycache_prefix=/tmp/windback-pycache", "-X frozen_modules=off", "-X no_debug_ranges"),
    "-W ignore::DeprecationWarning -W error::UserWarning",
]
if sys.version_info >= (3, 11):
    FLAGS += ["-P", "-X int_max_str_digits=5000"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("flags", FLAGS)
def test_a_sender_starts_with_the_flags_of_its_application(server, tmp_path, flags):
    program = f"""
import sys
sys.path[:0] = [{str(SOURCE)!r}]
import windback
{SENDS}
from windback import isolation
print(*isolation.command("python", "pass"))
"""
    command = [sys.executable, *flags.split(), "-c", program]
    used = run(command, tmp_path, server.url, is_quiet=not flags.startswith("-X")).splitlines()[-1]
    assert numbers(server) == [1]
    assert used.startswith("python -I ")
    if flags not in LEFT_OUT:
        assert flags.replace("-OO", "-O -O") in used
    assert not {"importtime", "showrefcount", "tracemalloc=5"} & {*used.split()}


@pytest.mark.timeout(120)
def test_a_local_server_runs_none_of_them(foreign):
    folder, ran = foreign
    (folder / "os.py").unlink()
    (folder / "app.py").write_text(
        APPLICATION.replace("windback.sender.supervisor", "windback.devserver.process")
        + textwrap.dedent("""
        server = windback.devserver.process.DevServer()
        server.start()
        server.stop()
        """),
        encoding="utf-8",
    )
    (folder / "sitecustomize.py").unlink()
    (folder / "usercustomize.py").unlink()
    run([sys.executable, folder / "app.py"], folder)
    assert ran() == ""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", [["-m", "windback"], []], ids=["module", "script"])
def test_the_command_line_runs_none_of_them(foreign, command):
    folder, ran = foreign
    # What runs before the first line of this package: that is Python's.
    for name in ("os", "string", "token", "windback", "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").unlink()
    start = [sys.executable, *command] if command else [Path(sys.executable).parent / "windback"]
    assert run([*start, "--version"], folder).startswith("windback ")
    program = [sys.executable, "-I", "-c", "import os; print(os.environ['WINDBACK_BASE_URL'])"]
    told = run([*start, "dev", "--port", "0", "--quiet", "--", *program], folder)
    assert "http://127.0.0.1:" in told
    assert ran() == ""
