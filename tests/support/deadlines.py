"""How late a busy machine may be where a test looks at a clock."""

#: Seconds. What must not happen in such a test takes longer: a close takes 5 s by default, a request
#: 10 s, and a wait without a deadline never ends.
SLACK_S = 4.0
