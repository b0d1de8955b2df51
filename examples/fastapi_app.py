"""A FastAPI application that tracks. To see what it tracks, run these in two terminals.

$ windback dev -- uvicorn --app-dir examples fastapi_app:app
$ curl localhost:8000/export -H "X-User: jane@example.com"
"""

from typing import Optional

from fastapi import FastAPI
from fastapi.requests import HTTPConnection
from starlette.types import Scope

from windback import get_client
from windback.fastapi import Track, WindbackMiddleware


def find_customer(scope: Scope) -> Optional[str]:
    """Return who makes the request, or opened the WebSocket."""
    return HTTPConnection(scope).headers.get("X-User")


app = FastAPI()
app.add_middleware(WindbackMiddleware, customer=find_customer)


@app.get("/export")
def export(track: Track) -> str:
    """Track for the customer of the request."""
    track("export", {"rows": 3})
    return "3 rows"


@app.get("/imported/{rows}")
def imported(rows: int) -> str:
    """Track for a customer that the code knows."""
    get_client().track_event("imported", "joe@example.com", {"rows": rows})
    return f"{rows} rows"
