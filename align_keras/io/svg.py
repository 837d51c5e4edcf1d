"""Draw plots as SVG."""

import html


def drawing(width: float, height: float, parts: list[str]) -> str:
    """Combine parts into a drawing that scales with its container."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
        f"{''.join(parts)}</svg>"
    )


def bar(
    x: float, y: float, width: float, height: float, style: str, tip: str = ""
) -> str:
    """Draw a bar; return `""` if its width or height is zero.

    Args:
        x, y, width, height: floats.
        style: string. A CSS class of the page.
        tip: string. The tooltip. Defaults to `""`.
    """
    if width <= 0 or height <= 0:
        return ""
    title = f"<title>{html.escape(tip)}</title>" if tip else ""
    return (
        f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" rx="2" '
        f'width="{max(width, 1):.1f}" height="{height:.1f}">{title}</rect>'
    )


def text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    style: str = "soft",
    size: int = 13,
) -> str:
    """Write words at a position; `anchor` is the end that `x` refers to."""
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" '
        f'style="font-size:{size}px" text-anchor="{anchor}">'
        f"{html.escape(words)}</text>"
    )
