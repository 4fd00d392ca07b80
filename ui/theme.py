"""Look and browser security: the Gradio theme, the style sheet and the response headers."""

from __future__ import annotations

from pathlib import Path

from gradio.themes import Base
from gradio.themes.utils import colors, sizes
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.html import Html, tag

STYLE_SHEET = Path(__file__).with_name("theme.css")
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")

#: Names that Gradio has no dark version of.
_WITHOUT_DARK = frozenset(
    {"block_padding", "block_title_text_weight", "color_accent", "shadow_drop", "shadow_drop_lg"}
)
_LOOK = {
    "body_background_fill": "var(--paper)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--ink-2)",
    "background_fill_primary": "var(--card)",
    "background_fill_secondary": "var(--soft)",
    "block_background_fill": "transparent",
    "block_border_width": "0px",
    "block_info_text_color": "var(--ink-2)",
    "block_label_background_fill": "transparent",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_title_text_color": "var(--ink)",
    "block_title_text_weight": "600",
    "border_color_accent": "var(--accent)",
    "border_color_primary": "var(--line)",
    "button_border_width": "1px",
    "button_primary_background_fill": "var(--accent-fill)",
    "button_primary_background_fill_hover": "var(--accent-hover)",
    "button_primary_text_color": "#ffffff",
    "button_secondary_background_fill": "var(--card)",
    "button_secondary_background_fill_hover": "var(--soft)",
    "button_secondary_border_color": "var(--line)",
    "button_secondary_text_color": "var(--ink)",
    "checkbox_background_color_selected": "var(--accent-fill)",
    "checkbox_border_color_selected": "var(--accent-fill)",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_hover": "var(--soft)",
    "checkbox_label_background_fill_selected": "var(--accent-soft)",
    "checkbox_label_border_color": "var(--line)",
    "checkbox_label_border_width": "1px",
    "checkbox_label_shadow": "none",
    "checkbox_label_text_color_selected": "var(--ink)",
    "color_accent": "var(--accent)",
    "color_accent_soft": "var(--accent-soft)",
    "input_background_fill": "var(--card)",
    "input_border_color": "var(--line)",
    "input_border_color_focus": "var(--accent)",
    "input_border_width": "1px",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 1px var(--accent)",
    "shadow_drop": "none",
    "shadow_drop_lg": "none",
    "slider_color": "var(--accent)",
}

#: Gradio compiles its HTML templates in the browser, hence unsafe-eval; all else comes from this server.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'self'",
        "object-src 'none'",
        "frame-ancestors 'self' https://huggingface.co",
    )
)
SECURITY_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class SecurityHeaders:
    """ASGI middleware that adds SECURITY_HEADERS to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *SECURITY_HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def head() -> str:
    """Return the style sheet for the page's head. Gradio's own `css` option rewrites selectors wrongly."""
    return tag("style", Html(STYLE_SHEET.read_text(encoding="utf-8")))


def theme() -> Base:
    """Return a flat theme with one accent and with system fonts, so that no font is fetched.

    The colours come from theme.css.
    """
    base = Base(
        primary_hue=colors.teal,
        neutral_hue=colors.slate,
        radius_size=sizes.radius_md,
        text_size=sizes.text_md,
        font=_SANS,
        font_mono=_MONO,
    )
    in_the_dark = {
        f"{name}_dark": value for name, value in _LOOK.items() if name not in _WITHOUT_DARK
    }
    return base.set(**_LOOK, **in_the_dark)
