"""What visitors said: conversations and votes, each of whoever asks."""

from __future__ import annotations

import time

from ui.public.visitors import Visitors
from upq.store import Content, Conversation, Conversations, Found, Place, Vote, Votes
from upq.store.connections import Connections

#: Conversations that a visitor keeps, and how long, seconds.
MOST_KEPT, KEPT_S = 50, 86_400
#: Conversations and votes of all visitors together: whoever keeps no cookies is another one every time.
MOST_OF_ALL = 5_000


class VisitorConversations(Conversations):
    """The conversations of whoever asks, for a day."""

    most_kept = MOST_KEPT

    def __init__(self, connections: Connections, visitors: Visitors) -> None:
        super().__init__(connections, time.time)
        self._visitors = visitors

    def save(self, content: Content, at: Place | None = None, owner: str = "") -> Place:
        """Conversations.save; what is a day old goes."""
        self.expire(time.time() - KEPT_S)
        place = super().save(content, at, self._visitors.asking())
        self.keep_newest(MOST_OF_ALL)
        return place

    def get(self, number: int, owner: str = "") -> Conversation:
        """Conversations.get of one's own."""
        return super().get(number, self._visitors.asking())

    def find(self, text: str = "", limit: int = 50, owner: str = "") -> Found:
        """Conversations.find among one's own."""
        self.expire(time.time() - KEPT_S)
        return super().find(text, limit, self._visitors.asking())

    def rename(self, number: int, title: str, owner: str = "") -> None:
        """Conversations.rename of one's own."""
        super().rename(number, title, self._visitors.asking())

    def delete(self, number: int, owner: str = "") -> None:
        """Conversations.delete of one's own."""
        super().delete(number, self._visitors.asking())

    def delete_all(self, owner: str = "") -> int:
        """Conversations.delete_all of one's own."""
        return super().delete_all(self._visitors.asking())


class VisitorVotes(Votes):
    """The votes of whoever asks."""

    def __init__(self, connections: Connections, visitors: Visitors) -> None:
        super().__init__(connections, time.time)
        self._visitors = visitors

    def cast(self, vote: Vote, owner: str = "") -> bool:
        """Votes.cast for oneself; the oldest of all visitors' votes make room."""
        is_first = super().cast(vote, self._visitors.asking())
        self.keep_newest(MOST_OF_ALL)
        return is_first

    def of(self, run_id: int | None = None, owner: str | None = None) -> list[Vote]:
        """Votes.of oneself."""
        return super().of(run_id, self._visitors.asking())

    def outcomes(self, run_id: int, owner: str | None = None) -> list[tuple[str, str, str]]:
        """Votes.outcomes of oneself."""
        return super().outcomes(run_id, self._visitors.asking())

    def showings(self, run_id: int, owner: str = "") -> set[str]:
        """Votes.showings of oneself."""
        return super().showings(run_id, self._visitors.asking())
