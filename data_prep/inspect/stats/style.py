"""The style sheet of stats.html."""

STYLE = """
:root { color-scheme: light dark; --page: #f5f6f4; --card: #fff; --text: #1b2027; --muted: #5a636e; --rule: #dcdfda;
  --bar: #2f6fb5; --track: #eaedef; --median: #b4500f; }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1f26; --text: #e8ebef; --muted: #a3adb9;
  --rule: #333b46; --bar: #7fb2f0; --track: #262d36; --median: #ffad6b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 20px 60px; }
h1 { margin: 0; font-size: clamp(1.5rem, 4vw, 2.2rem); line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 1.3rem; }
p { margin: 0 0 10px; max-width: 85ch; }
.muted, small { color: var(--muted); }
small { display: block; font-size: .82rem; font-weight: 400; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(185px, 1fr)); gap: 12px; margin: 22px 0 0; }
.cards div, .panel, .box { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.cards div { padding: 12px 16px; }
.cards dt { color: var(--muted); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.6rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.cards dd small { font-size: .8rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 14px; }
.panel { margin: 0; padding: 12px 16px; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
.bar { fill: var(--bar); } .bar:hover { opacity: .75; }
.axis { stroke: var(--muted); } .median { stroke: var(--median); stroke-width: 1.5; stroke-dasharray: 4 3; }
.tick { fill: var(--muted); font-size: 12px; text-anchor: middle; } .strong { fill: var(--median); font-weight: 600; }
.bars { list-style: none; margin: 0; padding: 0; font-size: .88rem; font-variant-numeric: tabular-nums; }
.bars li { display: grid; grid-template-columns: minmax(0, 9.5em) 1fr auto 3.4em; gap: 10px; align-items: center;
  padding: 2px 0; }
.bars .rest { display: block; color: var(--muted); padding-top: 6px; }
.value { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.track { height: 10px; border-radius: 5px; background: var(--track); overflow: hidden; }
.track i { display: block; height: 100%; min-width: 2px; border-radius: 5px; background: var(--bar); }
.count, .share { text-align: right; } .share { color: var(--muted); }
.box { overflow-x: auto; padding: 6px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: 6px 14px; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 600; } thead th { color: var(--muted); font-weight: 500; }
tbody tr > * { border-top: 1px solid var(--rule); }
.same { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 2px 24px; margin: 14px 0 0;
  padding: 12px 16px; }
.below { margin-top: 14px; }
.same div { display: flex; justify-content: space-between; gap: 12px; }
.same dt { color: var(--muted); } .same dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
.group { margin: 0 0 12px; padding: 12px 16px; }
.group ul { list-style: none; display: flex; flex-wrap: wrap; gap: 12px; margin: 8px 0 0; padding: 0; }
.group li { max-width: 170px; font-size: .78rem; color: var(--muted); overflow-wrap: anywhere; }
.group img { display: block; height: 96px; max-width: 170px; object-fit: contain; border-radius: 6px;
  margin-bottom: 4px; }
.bad { border-left: 4px solid var(--median); padding: 10px 16px; }
@media (max-width: 560px) { .bars li { grid-template-columns: minmax(0, 7em) 1fr auto 3.2em; gap: 8px; } }
"""
