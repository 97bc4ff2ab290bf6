"""What a session, blocking or asyncio, knows of the daemon it talks to."""

from __future__ import annotations

from pillion.conversation import Conversation
from pillion_protocol import Limits, Spec


class Described:
    """The welcome of a conversation, in the words of a user."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    @property
    def policy(self) -> str:
        """The name of the policy that answers."""
        return self._conversation.welcome.policy

    @property
    def version(self) -> str:
        """The version that was current when the session was opened; an episode has its own."""
        return self._conversation.welcome.version

    @property
    def digest(self) -> str:
        """`sha256:…` of the artifact of that version."""
        return f"sha256:{self._conversation.welcome.digest.hex()}"

    @property
    def certificate(self) -> str:
        """How much the other observations of a batch change an answer of that version: `exact` (not in a bit),
        `within 1e-6` or `worse`; empty where the daemon does not say."""
        return self._conversation.welcome.certificate

    @property
    def spec(self) -> Spec:
        """Names, dtypes, shapes and bounds of observations and outputs."""
        return self._conversation.spec

    @property
    def limits(self) -> Limits:
        """What the daemon takes from one session."""
        return self._conversation.limits
