"""The app open to strangers: who asks, what they may see and change, and how much they may take."""

from ui.public.app import Place, PublicApp
from ui.public.limits import Limits
from ui.public.visitors import VisitorCookie, Visitors

__all__ = ["Limits", "Place", "PublicApp", "VisitorCookie", "Visitors"]
