import windback
from celery import Celery

app = Celery("page", broker="memory://")


def charge():
    """Do what the page has no words for."""
