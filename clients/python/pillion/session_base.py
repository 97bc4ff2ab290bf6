"""What the blocking and the asyncio session share: the properties that the daemon's welcome sets."""

from __future__ import annotations

from pillion.conversation import Conversation
from pillion_protocol import Limits, Spec


class SessionBase:
    """The daemon's answer to `connect`, as properties. They change when the session is opened again."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    @property
    def policy(self) -> str:
        """The name of the policy."""
        return self._conversation.welcome.policy

    @property
    def version(self) -> str:
        """The version that was current when the session was opened. Each episode has its own `version`."""
        return self._conversation.welcome.version

    @property
    def digest(self) -> str:
        """The digest of that version's artifact, `sha256:…`."""
        return f"sha256:{self._conversation.welcome.digest.hex()}"

    @property
    def certificate(self) -> str:
        """How much the other rows of a batch change an answer of that version.

        `exact` (no bit), `within 1e-6` or `worse`; empty if the daemon does not know.
        """
        return self._conversation.welcome.certificate

    @property
    def spec(self) -> Spec:
        """Names, dtypes, shapes and bounds of observations and outputs."""
        return self._conversation.spec

    @property
    def limits(self) -> Limits:
        """What the daemon accepts from one session: `rows_max`, `episodes_max`, `head_bytes_max`."""
        return self._conversation.limits
