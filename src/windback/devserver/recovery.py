"""Recovery emails: which strategy suits a cancel reason, and what each writes. Pure.

Strategies, reasons and variables are those of the docs pages "Recovery" and "Recovery Templates"; the words
are ours and replace those of the API's model.
"""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, NamedTuple, Optional

Doc = Dict[str, object]


class Text(NamedTuple):
    """A subject and a body with variables in double braces."""

    subject: str
    body: str


#: What each of the nine strategies writes.
STRATEGIES: Dict[str, Text] = {
    "value_recap": Text(
        "What you have built with {{plan_name}}",
        "Hi {{customer_name}},\n\nbefore you go: this is what {{plan_name}} did for you so far. Your data and"
        " your settings are all still here, and one click brings everything back.",
    ),
    "unused_feature": Text(
        "{{customer_name}}, this part of {{plan_name}} may be what you missed",
        "Hi {{customer_name}},\n\nyou told us that something was missing. {{plan_name}} has features that you"
        " have not tried yet, and one of them may do just that. Shall we show you in ten minutes?",
    ),
    "downgrade_offer": Text(
        "A smaller plan, {{customer_name}}?",
        "Hi {{customer_name}},\n\n{{plan_name}} may be more than you need. There is a smaller plan that keeps"
        " your data and costs less. Reply to this email and we will move you over.",
    ),
    "pause_option": Text(
        "Take a break instead of leaving",
        "Hi {{customer_name}},\n\nyou can pause {{plan_name}} for up to three months. You pay nothing"
        " meanwhile, and everything is where you left it when you come back.",
    ),
    "founder_email": Text(
        "A personal note about your cancellation",
        "Hi {{customer_name}},\n\nI am one of the founders. You did not get the help you should have had, and"
        " I would like to put that right myself. When can I call you?",
    ),
    "pain_point_fix": Text(
        "The problem you had is being fixed",
        "Hi {{customer_name}},\n\nthank you for telling us what went wrong. Our engineers are on it, and we"
        " would like you to be the first to see {{plan_name}} work as it should.",
    ),
    "social_proof": Text(
        "Why teams like yours stay with {{plan_name}}",
        "Hi {{customer_name}},\n\nothers compared {{plan_name}} with what else there is, and came back. Here"
        " is what they told us about the switch, and what it cost them.",
    ),
    "feedback_request": Text(
        "One question, {{customer_name}}",
        "Hi {{customer_name}},\n\nwe are sorry to see you go. What is the one thing that would have kept you?"
        " Just reply; a person reads every answer.",
    ),
    "discount": Text(
        "20 % off if you stay, {{customer_name}}",
        "Hi {{customer_name}},\n\nif the price was the reason: the code STAY20 takes 20 % off {{plan_name}}"
        " for the next three months.",
    ),
}

#: The strategy for a reason (Stats page of the docs tree); the last three are the site's spellings.
_BY_REASON = {
    "too_expensive": "discount",
    "missing_features": "unused_feature",
    "not_using_enough": "value_recap",
    "switching_competitor": "social_proof",
    "technical_issues": "pain_point_fix",
    "poor_support": "founder_email",
    "dont_need_anymore": "pause_option",
    "switched_to_competitor": "social_proof",
    "bad_support": "founder_email",
    "temporary_pause": "pause_option",
}

_COUPON = {"coupon_code": "STAY20", "coupon_percent": 20}
_NO_COUPON = {"coupon_code": None, "coupon_percent": None}

_variable = re.compile(r"\{\{\s*(customer_name|customer_email|plan_name|cancel_reason)\s*\}\}").sub


def strategy_for(reason: object) -> str:
    """The strategy that is recommended for a reason; free text has none."""
    return _BY_REASON.get(reason, "feedback_request") if isinstance(reason, str) else "feedback_request"


def write(event: Mapping[str, object], template: Optional[Mapping[str, object]]) -> List[Doc]:
    """The emails for a churn event: one of each strategy, or the customer's own *template* in their place."""
    recommended = strategy_for(event["cancel_reason"])
    if template is not None:
        text = Text(str(template["subject"]), str(template["body"]))
        return [_email(event, recommended, text, recommended=True)]
    return [
        _email(event, strategy, text, recommended=strategy == recommended)
        for strategy, text in STRATEGIES.items()
    ]


def _email(event: Mapping[str, object], strategy: str, text: Text, *, recommended: bool) -> Doc:
    values = {
        "customer_name": event["customer_name"] or "there",
        "customer_email": event["customer_email"],
        "plan_name": event["plan_name"] or "your plan",
        "cancel_reason": event["cancel_reason"] or "",
    }

    def value(match: re.Match[str]) -> str:
        return str(values[match[1]])

    return {
        "strategy": strategy,
        "subject": _variable(value, text.subject),
        "body": _variable(value, text.body),
        "recommended": recommended,
        **(_COUPON if strategy == "discount" else _NO_COUPON),
    }
