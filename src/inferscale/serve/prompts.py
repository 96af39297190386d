"""The prompts of a request, and how a conversation becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import bad_field
from .service import Service


def read_prompts(body: Mapping[str, Any], chat: bool, service: Service) -> list[str]:
    """The prompts of a request, each ended as the service says.

    Raises:
        APIError: If there is none, or it cannot be read.
    """
    if chat:
        texts = [_checked_prompt("messages", _conversation(body.get("messages")))]
    else:
        texts = _texts(body.get("prompt"), service.limits.max_prompts)
    end = service.prompt_end
    return [text if text.endswith(end) else text + end for text in texts]


def _texts(given: object, most: int) -> list[str]:
    prompts = given if isinstance(given, list) else [given]
    if not prompts or len(prompts) > most:
        raise bad_field("prompt", f"{len(prompts)} prompts: give 1 to {most} in a request")
    return [_checked_prompt("prompt", prompt) for prompt in prompts]


def _checked_prompt(name: str, prompt: object) -> str:
    if not isinstance(prompt, str):
        hint = "token ids are not read (lm-eval: tokenized_requests=False)"
        raise bad_field(name, f"give a text or a list of texts; {hint}")
    if not prompt:
        raise bad_field(name, "there is nothing to answer: the text is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise bad_field(name, "the text holds half a character (a lone surrogate)") from None
    return prompt


def _conversation(messages: object) -> str:
    """One text: what the user said, after what the system said; of several turns, who said what."""
    if not isinstance(messages, list) or not messages:
        raise bad_field("messages", "give a list of messages, the last one the user's")
    turns = [_turn(message) for message in messages]
    if turns[-1][0] != "user":
        raise bad_field("messages", f"the last message is the {turns[-1][0]}'s: it must be the user's")
    head = [text for role, text in turns if role == "system"]
    said = [(role, text) for role, text in turns if role != "system"]
    if len(said) == 1:
        return "\n\n".join([*head, said[0][1]])
    return "\n\n".join([*head, *(f"{role.capitalize()}: {text}" for role, text in said), "Assistant:"])


def _turn(message: object) -> tuple[str, str]:
    roles = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or role not in roles:
        raise bad_field("messages", f"the role {str(role)[:40]!r} is not served: system, user or assistant")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    told = [text for text in texts if isinstance(text, str)]
    if len(told) != len(parts):
        raise bad_field("messages", "the content must be text")
    return roles[role], "".join(told)
