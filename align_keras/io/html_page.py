"""Build reports as a single, self-contained HTML page."""

import html
from collections.abc import Iterable

STYLE = """
:root{--ink:#1c2430;--soft:#667085;--line:#e4e7ec;--paper:#fff;--wash:#f7f8fa;
--kept:#2a78d6;--gone:#c3cad6;--alone:#9db8e0;--only:#0f3d7a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;
--line:#2b3442;--paper:#12161d;--wash:#191f29;--kept:#5b9df0;--gone:#445063;
--alone:#3b5f93;--only:#c5dcff}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1040px;margin:0 auto;padding:48px 24px 96px}
h1{font-size:30px;margin:0 0 4px;letter-spacing:-.02em}
h2{font-size:20px;margin:56px 0 4px}p{margin:4px 0 16px;color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));
gap:12px;margin:28px 0}.tile{background:var(--wash);border-radius:12px;
padding:16px 20px}.tile b{display:block;font-size:28px;letter-spacing:-.02em}
.tile span{color:var(--soft);font-size:14px}
table{border-collapse:collapse;width:100%;font-size:14px;
font-variant-numeric:tabular-nums}th{color:var(--soft);font-weight:500}
th,td{text-align:right;padding:8px 10px;border-bottom:1px solid var(--line)}
th:first-child,td:first-child,.rules :is(th,td):nth-child(2){text-align:left}
.rules{margin-top:24px}small{color:var(--soft)}
svg{width:100%;height:auto;display:block}svg text{fill:var(--ink);
font:13px system-ui,sans-serif}svg .soft{fill:var(--soft)}
.kept{fill:var(--kept)}.gone{fill:var(--gone)}.alone{fill:var(--alone)}
.only{fill:var(--only)}.axis{stroke:var(--line)}
.cut{stroke:var(--only);stroke-dasharray:4 3}
svg .on{fill:var(--paper)}
.plots{display:grid;gap:28px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
.key i{display:inline-block;width:12px;height:12px;border-radius:3px;
margin:0 6px 0 14px;vertical-align:-1px}.key i:first-child{margin-left:0}
details{border-bottom:1px solid var(--line);padding:10px 0}
summary{cursor:pointer;font-weight:500}summary small{font-weight:400}
li{margin:8px 0;overflow-wrap:anywhere}li small{display:block}
.scroll{overflow-x:auto}.scroll>svg{min-width:680px}
@media(max-width:560px){main{padding:28px 16px 64px}h2{margin-top:40px}}
"""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """Build an HTML page.

    Args:
        title: string.
        body: iterable of strings of HTML.
        style: string. Additional CSS. Defaults to `""`.

    Returns:
        string, a complete HTML page that loads no other files.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def scrolling(content: str) -> str:
    """Make content scroll horizontally if it is too wide for the screen."""
    return f'<div class="scroll">{content}</div>'


def tile(number: str, words: str) -> str:
    """Show a large number, and what it counts."""
    return f'<div class="tile"><b>{number}</b><span>{words}</span></div>'


def thousands(number: int) -> str:
    """Format a count with commas between the thousands."""
    return f"{number:,}"


def percent(part: float, whole: float) -> str:
    """Format a share, without rounding to 0 % or 100 % unless it is exact."""
    if not whole or part in (0, whole):
        return "0 %" if not part else "100 %"
    share = 100 * part / whole
    if share < 0.1:
        return "<0.1 %"
    return ">99.9 %" if share > 99.9 else f"{share:.1f} %"


def escape(text: object) -> str:
    """Escape any text for HTML."""
    # Unprintable characters would break the page or mislead the reader.
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return html.escape(shown)
