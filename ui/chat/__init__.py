"""The Chat tab: one conversation with three precisions side by side."""

from ui.chat.turn import checked_message, column, conversation_of, decoding_of

__all__ = ["checked_message", "column", "conversation_of", "decoding_of"]
