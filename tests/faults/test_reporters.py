"""What error reporters show of an error: the local variables of every frame, and no key among them.

Each reporter runs for real, in a process of its own, over mistakes of the application that pass frames of
this package. The program keeps what it looks for in a closure, and has no secret in a variable itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from commands import SOURCE

KEY = "sk_live_Qm7vXw2RkT9zLp4NhB6dYc3J"
PUBLIC = "pub_live_Zr8tGw5KqV1xMn7SbD2fHj4L"
PASSWORD = "S3cr.t-of.Redis_Wq9"
WEBHOOK = "whsec_Ty6uIo8PaSd2FgHj4KlZx"
BROKER = f"redis://app:{PASSWORD}@127.0.0.1:9/0?ssl_keyfile_password={PASSWORD}" + "&ssl_x=1" * 10

PROGRAM = '''
import io, json, os, sys, traceback, warnings
warnings.simplefilter("ignore")
import windback
from windback.webhooks import WebhookReceiver, parse, verify

def bad_slug(): windback.Windback(project_slug="a b")
def bad_option(): windback.Windback(batch_size=0)
def bad_option_async(): windback.AsyncWindback(overflow="drop")
def bad_url(): windback.Windback(base_url="http://example.com")
def bad_broker(): windback.Windback(broker=os.environ["WINDBACK_BROKER"] + "&other=1")
def bad_broker_worker(): windback.Windback(broker=os.environ["WINDBACK_BROKER"], worker=None, journal="/tmp")
def swapped(): windback.Windback("my-project", os.environ["WINDBACK_API_KEY"])
def key_with_a_line_break(): windback.Windback(os.environ["WINDBACK_API_KEY"] + "\\n")
def url_with_a_password():
    windback.Windback(base_url="https://user:" + os.environ["PASSWORD"] + "@example.com/v1")
def url_with_a_password_async():
    windback.AsyncWindback(base_url="https://user:" + os.environ["PASSWORD"] + "@example.com/v1")
def relay_with_a_password():
    from windback.relay import Relay
    Relay("/tmp/windback-none", base_url="https://user:" + os.environ["PASSWORD"] + "@example.com/v1")
def unknown_url(): windback.Windback(proxy="http://user:" + os.environ["PASSWORD"] + "@example.com:3128")
def unknown_keys(): windback.Windback(keys={"shop": os.environ["WINDBACK_API_KEY"]})
def key_as_argument(): windback.Windback(
    os.environ["WINDBACK_API_KEY"], "a b", public_key=os.environ["WINDBACK_PUBLIC_KEY"])
def unreachable(): windback.Windback(project_slug="p", timeout=1, max_retries=0).get_churn_event("x")
def unreachable_public(): windback.Windback(project_slug="p", timeout=1, max_retries=0).submit_cancel_flow(
    customer_email="jane@example.com", cancel_reason="x")
def unreachable_async():
    import asyncio
    async def call():
        async with windback.AsyncWindback(project_slug="p", timeout=1, max_retries=0) as client:
            await client.get_churn_event("x")
    asyncio.run(call())
def unreachable_broker():
    windback.Windback(broker=os.environ["WINDBACK_BROKER"].partition("?")[0]).track_events([object()])
def bad_event(): windback.Windback().track_event("e", "no address", {"x": object()})
def bad_signature(): verify(b"{}", "0" * 64)
def bad_alert(): parse(b"{", "0" * 64)
def secret_pickled():
    import pickle
    pickle.dumps(windback.Windback()._config)
def secret_in_an_error():
    config = windback.Windback(broker=None)._config
    raise ValueError(config, config.api_key, f"{config.api_key}", vars(config))
def secret_sliced():
    config = windback.Windback()._config
    config.api_key[3:]

ACTS = [value for name, value in list(globals().items())
        if callable(value) and getattr(value, "__module__", "") == "__main__"]

def show_rich(error):
    import rich.console, rich.traceback
    out = io.StringIO()
    shown = rich.traceback.Traceback.from_exception(
        type(error), error, error.__traceback__, show_locals=True,
        locals_max_string=None, locals_max_length=None)
    rich.console.Console(file=out, width=250).print(shown)
    return out.getvalue()

def show_structlog(error):
    from structlog.tracebacks import ExceptionDictTransformer
    told = type(error), error, error.__traceback__
    return "".join(
        json.dumps(ExceptionDictTransformer(
            show_locals=True, locals_max_string=100000, use_rich=use_rich)(told))
        for use_rich in (True, False))

def show_sentry(error):
    import sentry_sdk
    sent = []
    sentry_sdk.init(dsn="http://k@127.0.0.1:9/1", before_send=lambda event, hint: sent.append(event),
                    default_integrations=False, auto_enabling_integrations=False, max_value_length=100000)
    sentry_sdk.capture_exception(error)
    assert sent
    return json.dumps(sent, default=repr)

def show_rollbar(error):
    import rollbar
    sent = []
    rollbar.init("token", handler="blocking", locals={"enabled": True, "safe_repr": False})
    rollbar.send_payload = lambda payload, token: sent.append(payload)
    rollbar.report_exc_info((type(error), error, error.__traceback__))
    assert sent
    return json.dumps(sent, default=repr)

def show_loguru(error):
    from loguru import logger
    out = io.StringIO()
    logger.remove()
    logger.add(out, diagnose=True, backtrace=True)
    logger.opt(exception=error).error("x")
    return out.getvalue()

def show_cgitb(error):
    import cgitb
    told = type(error), error, error.__traceback__
    return cgitb.text(told) + cgitb.html(told)

def show_werkzeug(error):
    from werkzeug.debug.repr import debug_repr
    from werkzeug.debug.tbtools import DebugTraceback
    text = DebugTraceback(error).render_traceback_text()
    trace = error.__traceback__
    while trace is not None:
        text += debug_repr(dict(trace.tb_frame.f_locals))  # what its console shows of a frame
        trace = trace.tb_next
    return text

def show_traceback(error):
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())

def show_context(error):
    """All that hangs on an error: its frames and those of what it came from, and each value in the ways that
    tools take values apart."""
    parts, seen = [], []
    while error is not None and error not in seen:
        seen.append(error)
        parts += [repr(error), str(error), repr(error.args), repr(vars(error))]
        trace = error.__traceback__
        while trace is not None:
            for name, value in trace.tb_frame.f_locals.items():
                for take in (repr, str, "{!r:.100}".format, lambda v: "%s" % (v,), lambda v: repr(vars(v)),
                             lambda v: repr([getattr(v, each) for each in dir(v) if each != "reveal"
                                             and not callable(getattr(v, each))]),
                             lambda v: json.dumps(v, default=lambda each: str(each)), list, lambda v: v[:50]):
                    try:
                        parts.append(str(take(value)))
                    except Exception:
                        pass
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return " ".join(parts)

def searcher(reversed_secrets):
    """What finds them in a text: reporters do not look into closures."""
    def find(said):
        lower = said.lower()
        for secret in (each[::-1].lower() for each in reversed_secrets):
            for at in range(len(secret) - 5):
                place = lower.find(secret[at : at + 6])
                if place >= 0:
                    return said[max(0, place - 200) : place + 60]
    return find

find, sys.argv[2:] = searcher(sys.argv[2:]), []
show = globals()["show_" + sys.argv[1]]

def attempt(act):
    local_marker = "LOCALS-ARE-SHOWN"
    act() if local_marker else None  # loguru shows what the line uses

def run_all():
    errors = []
    for act in ACTS:
        try:
            attempt(act)
        except Exception as error:
            errors.append((act.__name__, error))
        else:
            sys.exit(f"{act.__name__} raised nothing")
    return errors

def check_all(errors):
    leaks = []
    for name, error in errors:
        said = show(error)
        if "LOCALS-ARE-SHOWN" not in said:
            leaks.append(f"{name}: shows no locals")
        if find(said):
            leaks.append(f"{name}: {find(said)!r}")
    print(len(errors), *leaks, sep="\\n", flush=True)

check_all(run_all())
os._exit(0)
'''

REPORTERS = ["rich", "structlog", "sentry", "rollbar", "loguru", "werkzeug", "traceback", "context"]
if find_spec("cgitb") is not None:  # until Python 3.12
    REPORTERS.append("cgitb")

ENVIRONMENT = {
    "WINDBACK_API_KEY": KEY,
    "WINDBACK_PUBLIC_KEY": PUBLIC,
    "WINDBACK_BROKER": BROKER,
    "WINDBACK_WEBHOOK_SECRET": WEBHOOK,
    "PASSWORD": PASSWORD,
    "WINDBACK_BASE_URL": "http://127.0.0.1:9/api/v1",
    "PYTHONPATH": str(SOURCE),
    "EVENTLET_NO_GREENDNS": "yes",  # sentry-sdk imports it, and its own DNS does not load beside httpcore2
}
#: What must not be shown: the part of each that is secret.
SECRETS = [KEY[len("sk_live_") :], PUBLIC[len("pub_live_") :], PASSWORD, WEBHOOK[len("whsec_") :]]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("reporter", REPORTERS)
def test_a_reporter_shows_locals_and_no_secret(reporter, tmp_path):
    program = tmp_path / "app.py"
    program.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program), reporter, *(secret[::-1] for secret in SECRETS)],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env={**os.environ, **ENVIRONMENT},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    count, *leaks = done.stdout.splitlines()
    assert leaks == []
    assert int(count) > 15


@pytest.mark.timeout(120)
def test_pytest_shows_locals_and_no_secret(tmp_path):
    acts = PROGRAM[PROGRAM.index("def bad_slug") : PROGRAM.index("ACTS = ")]
    head = "import os, windback\nfrom windback.webhooks import parse, verify\n"
    marked = re.sub(
        r"(?m)^def (\w+)\(\):[ \n] *", r"def test_\1():\n    local_marker = 'LOCALS-ARE-SHOWN'\n    ", acts
    )
    (tmp_path / "test_app.py").write_text(head + marked, encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-l", "-vv", "--tb=long", "-p", "no:cacheprovider"),
            *("-c", os.devnull, "--rootdir", str(tmp_path), "--showlocals", "test_app.py"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, **ENVIRONMENT, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert " passed" not in done.stdout.splitlines()[-1]
    assert done.stdout.count("LOCALS-ARE-SHOWN") > 15
    said = done.stdout.lower()
    for secret in SECRETS:
        leaked = [secret[at : at + 6] for at in range(len(secret) - 5) if secret[at : at + 6].lower() in said]
        assert leaked == []
