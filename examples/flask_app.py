"""A Flask application that tracks. To see what it tracks, run these in two terminals.

$ windback dev -- flask --app examples/flask_app.py run
$ curl localhost:5000/export -H "X-User: jane@example.com"
"""

from typing import Optional

from flask import Flask, request

from windback.flask import FlaskWindback

app = Flask(__name__)
wb = FlaskWindback(app)


@wb.customer_loader
def find_customer() -> Optional[str]:
    """Return who is logged in. With Flask-Login this function is not needed."""
    return request.headers.get("X-User")


@app.get("/export")
def export() -> str:
    """Track for the customer of the request."""
    wb.track("export", {"rows": 3})
    return "3 rows\n"


@app.get("/imported/<int:rows>")
def imported(rows: int) -> str:
    """Track for a customer that the code knows."""
    wb.track_event("imported", "joe@example.com", {"rows": rows})
    return f"{rows} rows\n"
