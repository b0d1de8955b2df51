"""Flask: one client for the application, and a scope for each request.

from windback.flask import FlaskWindback

windback = FlaskWindback(app)  # or FlaskWindback(), and windback.init_app(app) in the factory

@app.post("/export")
def export():
    windback.track("export", {"rows": 3})
"""

from __future__ import annotations

import contextlib
import logging
import os
from datetime import timedelta
from importlib.util import find_spec
from typing import Callable, Generator, List, Mapping, Optional, TypeVar, Union
from weakref import WeakKeyDictionary

import orjson

from . import clock
from .client import Windback
from .config import unread
from .context import Scope, close_scope, current, open_scope
from .default import SETTINGS, GetSetting, client_from, client_or_none
from .errors import ConfigurationError
from .event.encode import Properties, Timestamp
from .options import naming_options
from .process import signals
from .webhooks import (
    MAX_BODY_BYTES,
    SIGNATURE_HEADER,
    TOLERANCE,
    AsyncHandler,
    Handler,
    SecretOrSecrets,
    Seen,
    WebhookError,
    WebhookReceiver,
    too_large,
    unreadable,
)

try:
    import flask
    from werkzeug.exceptions import HTTPException
except ImportError as error:
    raise ImportError('windback.flask needs Flask: pip install "windback[flask]"') from error

logger = logging.getLogger("windback")

Loader = TypeVar("Loader", bound=Callable[[], Optional[str]])

_KEY = "windback"
#: How a setting is written.
_PLACE = "WINDBACK_{}"
_SETTINGS = tuple(map(_PLACE.format, (*SETTINGS, "REQUEST_EVENT")))


class FlaskWindback:
    """The extension: tracks for the customer of the current request.

    The client is made at the first event, from the app's config and the environment. Apps with equal settings
    share one client. Config: WINDBACK_API_KEY, WINDBACK_PROJECT_SLUG, WINDBACK_BASE_URL, WINDBACK_ENABLED;
    WINDBACK_OPTIONS, a dict with other arguments of `Windback`; WINDBACK_REQUEST_EVENT, the name of an event
    for each request that has a customer (method, route, status, duration_ms; never path, query, headers or
    body).

    `customer_loader` finds the customer. Without one it is Flask-Login's current user, if the app uses that.

    Args:
        app: The application. None: call `init_app` with each app.
        client: Your own client, for all apps. None: made from the settings.

    Raises:
        ConfigurationError: The client is not a `Windback`.
    """

    @naming_options
    def __init__(self, app: Optional[flask.Flask] = None, client: Optional[Windback] = None) -> None:
        if client is not None and not isinstance(client, Windback):
            raise ConfigurationError(f"client must be a Windback, not {type(client).__name__}")
        self._given = client
        self._load: Optional[Callable[[], Optional[str]]] = None
        self._apps: WeakKeyDictionary[flask.Flask, Mapping[str, object]] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Open a scope for each request of *app*. A second call for one app does nothing."""
        self._apps[app] = app.config
        if _KEY in app.extensions:
            return
        app.extensions[_KEY] = self
        for problem in unread(app.config, _SETTINGS, "into WINDBACK_OPTIONS"):
            logger.warning("app.config: %s", problem)
        if os.environ.get("FLASK_RUN_FROM_CLI") == "true":  # `flask run`, which SIGTERM would end immediately
            signals.install_for_command()
        flask.request_started.connect(self._begin, app)
        app.after_request(self._note_status)
        app.teardown_request(self._end)

    def customer_loader(self, load: Loader) -> Loader:
        """Decorate the function that returns the address of the request's customer, or None.

        It is called in the request, at its first event, once.
        """
        self._load = load
        return load

    @property
    def client(self) -> Windback:
        """The client of the current app.

        Raises:
            ConfigurationError: The settings allow no client, or it is not clear which app is meant.
        """
        return self._given or client_from(_settings_of(self._config()), _PLACE)

    def track_event(
        self,
        event: str,
        customer_email: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        """Record something a customer did; see `Windback.track_event`. False without a usable client."""
        client = self._client_or_none()
        return client is not None and client.track_event(
            event, customer_email, properties, timestamp=timestamp
        )

    def track(
        self,
        event: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        """Record something that the customer of this request did; see `Windback.track`."""
        client = self._client_or_none()
        if client is None:
            return False
        request = flask.request.environ.get(_KEY) if flask.has_request_context() else None
        if current() is None and isinstance(request, _Request):  # a body that is streamed in its context
            with request.reopened():
                return client.track(event, properties, timestamp=timestamp)
        return client.track(event, properties, timestamp=timestamp)

    def _client_or_none(self) -> Optional[Windback]:
        return self.client_for(self._config())

    def _config(self) -> Mapping[str, object]:
        apps = list(self._apps.values())
        if flask.has_app_context():
            config = flask.current_app.config
            if any(config is each for each in apps):
                return config
        if len(apps) == 1:
            return apps[0]
        if apps:
            message = f"{len(apps)} apps use this FlaskWindback: call it inside `with app.app_context():`"
        else:
            message = "this FlaskWindback has no app yet: pass one, or call init_app(app)"
        raise ConfigurationError(message)

    def find_customer(self) -> Optional[str]:
        """Return the address of the customer of the current request."""
        if self._load is not None:
            return self._load()
        if not flask.has_request_context() or not hasattr(flask.current_app, "login_manager"):
            return None
        import flask_login  # type: ignore[import-untyped]

        email: object = getattr(flask_login.current_user, "email", None)
        return email if isinstance(email, str) else None

    def client_for(self, config: Mapping[str, object]) -> Optional[Windback]:
        """Return the client of an app; None, with a WARNING, if its settings allow none."""
        return self._given or client_or_none(lambda: client_from(_settings_of(config), _PLACE))

    def _begin(self, _: object) -> None:
        flask.request.environ[_KEY] = _Request(self)

    def _note_status(self, response: flask.Response) -> flask.Response:
        request = flask.request.environ.get(_KEY)
        if isinstance(request, _Request):
            request.status = response.status_code
        return response

    def _end(self, _: Optional[BaseException]) -> None:
        request = flask.request.environ.get(_KEY)
        if isinstance(request, _Request):
            request.end()


def _settings_of(config: Mapping[str, object]) -> GetSetting:
    return lambda name: config.get(f"WINDBACK_{name}")


class _Request:
    """One request, from its scope to its event."""

    def __init__(self, extension: FlaskWindback) -> None:
        self._extension = extension
        self._started_s = clock.now_s()
        self.status = 500  # unless there is a response
        self._scope = Scope(extension.find_customer)
        self._open = [open_scope(self._scope)]

    @contextlib.contextmanager
    def reopened(self) -> Generator[None, None, None]:
        """Open its scope again, after its end."""
        token = open_scope(self._scope)
        try:
            yield
        finally:
            close_scope(token)

    def end(self) -> None:
        """Track the request if that is wanted, and close the scope; does nothing the second time."""
        if not self._open:
            return
        try:
            self._track()
        finally:
            self._scope.give_up("a customer_loader can't be async")
            close_scope(self._open.pop())

    def _track(self) -> None:
        name = flask.current_app.config.get("WINDBACK_REQUEST_EVENT")
        rule = flask.request.url_rule
        client = self._extension.client_for(flask.current_app.config) if name and rule else None
        if client is None or rule is None:
            return
        self._scope.customer.resolve(client._engine.hooks.failed)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        took_s = clock.now_s() - self._started_s
        client._track_request(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            str(name), self._scope, took_s, method=flask.request.method, route=rule.rule, status=self.status
        )


@naming_options
def webhook_blueprint(
    handler: Union[Handler, AsyncHandler],
    secret: SecretOrSecrets = None,
    *,
    path: str = "/windback",
    seen: Optional[Seen] = None,
    tolerance: Optional[timedelta] = TOLERANCE,
) -> flask.Blueprint:
    """Return a blueprint that receives churn risk alerts, for `app.register_blueprint`.

    Args:
        handler: Gets each `ChurnRiskAlert` once. An async function needs `pip install "flask[async]"`. What
            it raises is answered with 500, and the API delivers again.
        secret: The webhook secret, or several; WINDBACK_WEBHOOK_SECRET if None.
        path: Where to receive, with and without a slash at its end.
        seen: Remembers the alerts that were handled; see `windback.webhooks.WebhookReceiver`. Several
            processes need one in common.
        tolerance: How old an alert may be; None: any age.

    Returns:
        The blueprint. With Flask-WTF exempt it: `csrf.exempt(blueprint)`.

    Raises:
        ConfigurationError: There is no secret, or an argument is wrong.
    """
    receiver = WebhookReceiver(handler, secret, seen=seen, tolerance=tolerance)
    if receiver.is_async and find_spec("asgiref") is None:
        raise ConfigurationError(
            'an async handler needs Flask\'s extra for async: pip install "flask[async]"'
        )
    path = "/" + path.strip("/")
    blueprint = flask.Blueprint(f"windback_webhook{path.replace('/', '_').replace('.', '_')}", __name__)

    def receive_webhook() -> flask.Response:
        signature = flask.request.headers.get(SIGNATURE_HEADER)
        try:
            body = _read_body()
        except HTTPException:  # the application's own bound
            raise
        except Exception:  # noqa: BLE001 - each server has its own: the sender has gone, or a chunk is malformed
            body = unreadable()
        if isinstance(body, WebhookError):
            status, answer = receiver.refuse(body)
        elif receiver.is_async:
            receive = flask.current_app.ensure_sync(receiver.receive_async)
            status, answer = receive(body, signature)
        else:
            status, answer = receiver.receive(body, signature)
        return flask.Response(orjson.dumps(answer), status, mimetype="application/json")

    blueprint.add_url_rule(path, "receive", receive_webhook, methods=["POST"])
    if path != "/":
        blueprint.add_url_rule(path + "/", "receive_slash", receive_webhook, methods=["POST"])
    return blueprint


def _read_body() -> Union[bytes, WebhookError]:
    """Return the body, or the error as soon as it is known to be too long."""
    request = flask.request
    if (request.content_length or 0) > MAX_BODY_BYTES:
        return too_large()
    # The stream is empty where the application has read the body already, which then keeps it.
    body = request.stream.read(MAX_BODY_BYTES + 1) or request.get_data()
    return body if len(body) <= MAX_BODY_BYTES else too_large()


__all__: List[str] = ["FlaskWindback", "webhook_blueprint"]
