"""Which certificates an API may have: those of the environment, else those that httpx brings (certifi)."""

from __future__ import annotations

import os
import ssl


def verifying() -> ssl.SSLContext:
    """Return a context for TLS that checks certificates and names, as httpx does.

    SSL_CERT_FILE names a file of certificates to trust, SSL_CERT_DIR a folder. Raises OSError if they can't
    be read. Reading them takes up to 0.1 s.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        context = ssl.create_default_context(cafile=file)
    elif folder:
        context = ssl.create_default_context(capath=folder)
    else:
        import certifi

        context = ssl.create_default_context(cafile=certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # the default from Python 3.10 on
    return context
