"""The views. An event inside of a transaction is sent when that commits, and never if it is rolled back."""

from typing import Optional

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

from windback.django import track, track_event


def find_customer(request: HttpRequest) -> Optional[str]:
    """Return who makes the request."""
    return request.headers.get("X-User")


def export(request: HttpRequest) -> HttpResponse:
    """Track for the customer of the request."""
    track("export", {"rows": 3})
    return HttpResponse("3 rows\n")


def imported(request: HttpRequest, rows: int) -> HttpResponse:
    """Track for a customer that the code knows."""
    track_event("imported", "joe@example.com", {"rows": rows})
    return HttpResponse(f"{rows} rows\n")


def order(request: HttpRequest, total: int) -> HttpResponse:
    """Track an order that is saved, and none that is not."""
    with transaction.atomic():
        track("order", {"total": total})
        if total > 1000:
            transaction.set_rollback(True)
    return HttpResponse("too much\n" if total > 1000 else "thanks\n")


urlpatterns = [
    path("export", export),
    path("imported/<int:rows>", imported),
    path("order/<int:total>", order),
]
