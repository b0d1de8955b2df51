import os
import subprocess
import sys

import windback

client = windback.get_client()


def sign_up(email, plan):
    client.track_event("signup", email, {"plan": plan})


def run_my_worker():
    code = """
import windback
client = windback.Windback()
for n in range(3):
    client.track_event("login", f"user{n}@example.com")
"""
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=True)
