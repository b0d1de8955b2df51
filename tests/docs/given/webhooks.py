from windback.webhooks import sign

body = b'{"event": "churn_risk.alert"}'
signature = sign(body, "whsec_local")
