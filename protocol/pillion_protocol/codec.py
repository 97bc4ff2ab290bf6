"""Encodes messages to bytes and decodes them. Hot path: one encoder, and one decoder for each type, are made once."""

from __future__ import annotations

from typing import Final

import msgspec

from pillion_protocol.errors import RemoteProtocolError
from pillion_protocol.limits import HEAD_BYTES_MAX
from pillion_protocol.messages import (
    Act,
    Action,
    Begin,
    Begun,
    End,
    Ended,
    Error,
    ErrorCode,
    Goodbye,
    Hello,
    Message,
    MessageType,
    Ping,
    Pong,
    Welcome,
)

STRUCTS: Final[dict[MessageType, type[Message]]] = {
    MessageType.HELLO: Hello,
    MessageType.WELCOME: Welcome,
    MessageType.BEGIN: Begin,
    MessageType.BEGUN: Begun,
    MessageType.ACT: Act,
    MessageType.ACTION: Action,
    MessageType.END: End,
    MessageType.ENDED: Ended,
    MessageType.PING: Ping,
    MessageType.PONG: Pong,
    MessageType.ERROR: Error,
    MessageType.GOODBYE: Goodbye,
}
"""The Struct of each type byte."""

_encoder = msgspec.msgpack.Encoder()
_prefixes = {struct: bytes([kind]) for kind, struct in STRUCTS.items()}
_decoders = {int(kind): msgspec.msgpack.Decoder(struct).decode for kind, struct in STRUCTS.items()}


def encode(message: Message) -> bytes:
    """Returns the head of `message`: its type byte, then its fields as one msgpack array."""
    return _prefixes[type(message)] + _encoder.encode(message)


def decode(head: bytes | memoryview) -> Message:
    """Returns the message in `head`, without keeping a reference to its bytes.

    Raises `RemoteProtocolError` with the code `too_large`, `unknown_message` or `malformed` if there is no message.
    """
    if len(head) > HEAD_BYTES_MAX:
        raise RemoteProtocolError(
            ErrorCode.TOO_LARGE, "the head is too large", f"at most {HEAD_BYTES_MAX} bytes", f"{len(head)} bytes"
        )
    if not head:
        raise RemoteProtocolError(
            ErrorCode.MALFORMED, "the head is empty", "a type byte and a msgpack array", "0 bytes"
        )
    decoder = _decoders.get(head[0])
    if decoder is None:
        raise RemoteProtocolError(
            ErrorCode.UNKNOWN_MESSAGE, "unknown type byte", f"1 to {max(_decoders)}", f"{head[0]}"
        )
    try:
        message: Message = decoder(head[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        name = MessageType(head[0]).name.lower()
        raise RemoteProtocolError(
            ErrorCode.MALFORMED, f"the body of this {name} cannot be read", f"the fields of {name}", str(error)
        ) from None
    return message
