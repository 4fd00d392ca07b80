"""The Chat tab: one conversation with three precisions side by side."""

from ui.chat.turn import column, conversation_of

__all__ = ["column", "conversation_of"]
