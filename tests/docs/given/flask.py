import pytest
from flask import session


@pytest.fixture
def client():
    app.secret_key = "of a test"
    return app.test_client()
