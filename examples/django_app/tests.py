"""Tests of the project: python manage.py test. Nothing is sent."""

from django.test import TestCase

from windback.django.test import TrackedEventsMixin


class OrderTest(TrackedEventsMixin, TestCase):
    """What the views track."""

    def test_an_order_is_tracked(self) -> None:
        """It waits for a commit that the test never does, and counts."""
        self.client.get("/order/99", headers={"X-User": "jane@example.com"})
        self.assert_tracked("order", customer_email="jane@example.com", properties={"total": 99})

    def test_an_order_that_is_rolled_back_is_not(self) -> None:
        """Its event is gone."""
        self.client.get("/order/2000", headers={"X-User": "jane@example.com"})
        self.assert_not_tracked("order")
