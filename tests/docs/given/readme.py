def sign_up(email):
    with Windback() as from_environment:
        from_environment.track_event("signup", email, {"plan": "pro"})
