"""The style sheet of a result's page; it takes its text colour from the page around, light or dark."""

_RULES = """
.inferscale{font:13px/1.45 system-ui,sans-serif;color:inherit;max-width:62em;text-align:left}
.inferscale p,.inferscale dl,.inferscale table,.inferscale pre{margin:.4em 0}
.inferscale .answer{font-size:22px;font-weight:600;overflow-wrap:anywhere}
.inferscale .note{font-size:12px;font-weight:400;opacity:.75}
.inferscale dl{display:grid;grid-template-columns:max-content 1fr;gap:.15em 1em}
.inferscale dl dt,.inferscale dl dd{margin:0;padding:0;font-weight:400;line-height:inherit}
.inferscale dl dt{opacity:.65}
.inferscale dl dd{overflow-wrap:anywhere;white-space:pre-line}
.inferscale .votes{border-collapse:collapse;border:0;font-size:13px;table-layout:auto;width:auto;display:table}
.inferscale table.votes tbody tr:nth-child(n){background:none;border:0}
.inferscale .votes th,.inferscale .votes td{padding:1px 12px 1px 0;border:0;text-align:left;font-weight:400;
background:none;color:inherit;font-variant-numeric:tabular-nums;max-width:24em;overflow-wrap:anywhere}
.inferscale .votes .wins th,.inferscale .votes .wins td{font-weight:700}
.inferscale .votes .bar{width:260px;min-width:160px}
.inferscale .bar span{display:block;height:13px;min-width:2px;border-radius:2px;box-sizing:border-box;
border:1px solid rgba(128,128,128,.6)}
.inferscale summary{cursor:pointer;margin:.5em 0;font-weight:600}
.inferscale .tree{overflow:auto;max-height:560px;border:1px solid rgba(128,128,128,.35);border-radius:6px}
.inferscale details pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:400px;overflow:auto;padding:.6em;
background:rgba(128,128,128,.1);color:inherit;border-radius:6px;
font:12px/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,monospace}
.inferscale svg{max-width:none;display:block}
.inferscale .edges .chosen{stroke-width:3}
.inferscale .edges .kept{stroke-width:1.3;opacity:.5}
.inferscale .edges .pruned{stroke-width:1.1;opacity:.4;stroke-dasharray:3 3}
.inferscale .compact .edges .kept{stroke-width:1}
.inferscale .compact .edges .pruned{stroke-dasharray:2 2;opacity:.3}
.inferscale .mark{stroke:currentColor;stroke-width:1;stroke-opacity:.55}
.inferscale .chosen .mark{stroke-width:2;stroke-opacity:1}
.inferscale g:hover>.mark{stroke-width:3;stroke-opacity:1}
.inferscale text{font:11px ui-monospace,"DejaVu Sans Mono",Menlo,monospace;fill:currentColor;white-space:pre}
.inferscale g.pruned text{opacity:.6}
.inferscale text.score{font-size:10px;opacity:.65}
.inferscale text.end{font-size:10px}
.inferscale .chosen text{font-weight:700}
.inferscale .legend{opacity:1;display:flex;flex-wrap:wrap;gap:.2em 1.4em;align-items:center}
.inferscale .legend svg{display:inline-block;vertical-align:middle}
.inferscale .ramp{display:inline-block;width:90px;height:10px;border-radius:2px;vertical-align:middle}
"""
STYLE = f"<style>{_RULES.strip()}</style>"
